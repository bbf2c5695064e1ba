// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	clientyaml "go.etcd.io/etcd/client/v3/yaml"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"k8s.io/apimachinery/pkg/util/wait"
)

// ClientConfig says how to reach one etcd.
type ClientConfig struct {
	// ConfigPath is a configuration file as etcd's and upstream's clients have
	// it (endpoints, cert-file, key-file, trusted-ca-file, username, …).
	ConfigPath string
	// Endpoints are used instead of the file's, or where no file is given.
	Endpoints []string
	Options   Options
	// LeaseTTL is the time to live of the leases a Writer takes.
	LeaseTTL time.Duration
	// Dial, if set, replaces the dialer: it resolves a Service to a backend
	// without the datapath's help. The address is host:port, or unix:….
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// How much an etcd may send before it is read: what gRPC would come to by itself on a
// fast connection over a long way. A page of a list that is larger than the window is
// let in as well.
const (
	streamWindow = 8 << 20
	connWindow   = 16 << 20
)

// Client is one connection to one etcd, or to one address behind which etcds
// may come and go: Generation counts the connections made, so that a Reader or
// Writer can check whether it still talks to the etcd that it knows.
// All methods are safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	log  *slog.Logger
	etcd *clientv3.Client
	kv   pb.KVClient
	// lookups are the keys that are read one by one, and at the same time.
	lookups *Gather[Found]

	mu         sync.Mutex
	generation uint64
	changed    chan struct{}
	closed     chan struct{}
}

// connecting says how long the pauses between attempts to connect are. gRPC's own
// grow to two minutes, in which an etcd that is back again isn't noticed.
var connecting = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 5 * time.Second},
	MinConnectTimeout: 5 * time.Second,
}

// NewClient makes a client. It doesn't wait for a connection; the error is one
// of the configuration, and names the file.
func NewClient(log *slog.Logger, cfg ClientConfig) (*Client, error) {
	c := prepareClient(log, cfg)
	return c, c.open()
}

// prepareClient is a Client that can be handed around, and used after open.
func prepareClient(log *slog.Logger, cfg ClientConfig) *Client {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions
	}
	c := &Client{cfg: cfg, log: log, changed: make(chan struct{}), closed: make(chan struct{})}
	c.lookups = c.NewLookups()
	return c
}

func (c *Client) open() error {
	config, err := clientConfig(c.cfg)
	if err != nil {
		return err
	}
	// The size of a page is aimed at, and may be missed by far where values grow
	// from page to page. etcd's own calls have no limit either, but it sets that
	// for each call, and the bare client below knows nothing of it.
	//
	// The buffer for what is sent, of 32 KiB, is given back between sends: a mesh of
	// hundreds of clusters has as many connections on which hardly anything is.
	//
	// The client's resolver names its balancer only after the addresses. Without a
	// default, gRPC begins to connect by another one, and then throws that away: a
	// second connection, with its handshake, for each client at its start.
	//
	// Windows of a fixed size keep gRPC from measuring the connection, which it does by
	// a ping for each message that comes after a pause: to read and answer those was a
	// third of what a server with 300 watchers spent (BenchmarkWatchers).
	config.DialOptions = append(config.DialOptions, grpc.WithContextDialer(c.dial),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy": "round_robin"}`),
		grpc.WithConnectParams(connecting), grpc.WithSharedWriteBuffer(true),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.ForceCodecV2(newCodec())))
	c.etcd, err = clientv3.New(*config)
	if err != nil {
		return fmt.Errorf("creating etcd client: %w", err)
	}
	c.kv = clientv3.RetryKVClient(c.etcd)
	return nil
}

// ConfiguredEndpoints gives the endpoints that a client of this configuration would
// use, in the order in which they are written down. It reads the file if there is
// one.
func (cfg ClientConfig) ConfiguredEndpoints() ([]string, error) {
	if cfg.ConfigPath == "" || len(cfg.Endpoints) > 0 {
		return cfg.Endpoints, nil
	}
	fromFile, err := clientyaml.NewConfig(cfg.ConfigPath)
	if err == nil && len(fromFile.Endpoints) == 0 {
		err = errors.New("it names no endpoints")
	}
	if err != nil {
		return nil, fmt.Errorf("reading etcd configuration %q: %w", cfg.ConfigPath, err)
	}
	return fromFile.Endpoints, nil
}

func clientConfig(cfg ClientConfig) (*clientv3.Config, error) {
	config := &clientv3.Config{Endpoints: cfg.Endpoints}
	if cfg.ConfigPath != "" {
		fromFile, err := clientyaml.NewConfig(cfg.ConfigPath)
		if err != nil {
			return nil, fmt.Errorf("reading etcd configuration %q: %w", cfg.ConfigPath, err)
		}
		if len(fromFile.Endpoints) == 0 {
			return nil, fmt.Errorf("reading etcd configuration %q: it names no endpoints", cfg.ConfigPath)
		}
		if len(cfg.Endpoints) > 0 {
			fromFile.Endpoints = cfg.Endpoints
		}
		config = fromFile
		if err := reloadCertificate(config, cfg.ConfigPath); err != nil {
			return nil, fmt.Errorf("reading etcd configuration %q: %w", cfg.ConfigPath, err)
		}
	}
	if len(config.Endpoints) == 0 {
		return nil, errors.New("creating etcd client: no endpoints")
	}
	config.Endpoints = slices.Clone(config.Endpoints)
	// Spread the load: clients with the same file start at different members.
	rand.Shuffle(len(config.Endpoints), func(i, j int) {
		config.Endpoints[i], config.Endpoints[j] = config.Endpoints[j], config.Endpoints[i]
	})
	config.DialTimeout = 0 // never block in the constructor
	config.DialKeepAliveTime = cfg.Options.KeepaliveHeartbeat
	config.DialKeepAliveTimeout = cfg.Options.KeepaliveTimeout
	// Retrying is done by Reader and Writer, which see the error and say so; a
	// retry hidden in the client would only hide the reason.
	config.MaxUnaryRetries = 1
	// What the client would log is returned as an error as well, or is noise.
	config.Logger = zap.NewNop()
	return config, nil
}

// reloadCertificate has the key pair read at each handshake rather than once.
func reloadCertificate(config *clientv3.Config, path string) error {
	if config.TLS == nil || len(config.TLS.Certificates) == 0 {
		return nil
	}
	pair, err := readKeyPair(path)
	if err != nil {
		return err
	}
	config.TLS.Certificates = nil
	config.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(pair.Certfile, pair.Keyfile)
		return &cert, err
	}
	return nil
}

// dial makes a connection and counts it. The count goes up before anything can
// be received over the new connection: what was read before the count is known
// to come from an earlier one.
func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := c.dialAddress(ctx, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.generation++
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	return conn, nil
}

func (c *Client) dialAddress(ctx context.Context, address string) (net.Conn, error) {
	if c.cfg.Dial != nil {
		return c.cfg.Dial(ctx, address)
	}
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", strings.TrimPrefix(path, "//")
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// Generation is the number of connections made so far, and a channel that is
// closed when the next one is made.
func (c *Client) Generation() (uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation, c.changed
}

// WaitReady waits until the etcd answers a read of key, which need not exist,
// and returns its cluster ID. While it doesn't, onError is told why, once for
// each attempt; attempts back off with jitter up to 5 seconds.
func (c *Client) WaitReady(ctx context.Context, key string, onError func(error)) (uint64, error) {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 5 * time.Second}
	for {
		resp, err := c.get(ctx, 5*time.Second, &pb.RangeRequest{Key: []byte(key), Serializable: true})
		switch {
		case err == nil:
			return resp.Header.ClusterId, nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case c.isClosed():
			return 0, ErrClosed
		}
		onError(err)
		if err := sleep(ctx, backoff.Step()); err != nil {
			return 0, err
		}
	}
}

// Get reads one key. It returns nil without an error where the key is absent, and not
// where its value is empty. It fails at once while there is no connection.
func (c *Client) Get(ctx context.Context, key string) ([]byte, error) {
	resp, err := c.get(ctx, 10*time.Second, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	if value := resp.Kvs[0].Value; value != nil {
		return value, nil
	}
	return []byte{}, nil
}

// Etcd gives the plain client, for what the engine doesn't offer.
func (c *Client) Etcd() *clientv3.Client { return c.etcd }

// Endpoints are the addresses of the etcd, for status output.
func (c *Client) Endpoints() []string { return c.etcd.Endpoints() }

// Done is closed by Close.
func (c *Client) Done() <-chan struct{} { return c.closed }

// Close ends the connection and whatever runs on it.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.isClosed() {
		c.mu.Unlock()
		return nil
	}
	close(c.closed)
	c.mu.Unlock()
	if c.etcd == nil { // never opened
		return nil
	}
	if err := c.etcd.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("closing etcd client: %w", err)
	}
	return nil
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func (c *Client) get(ctx context.Context, timeout time.Duration, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.kv.Range(ctx, req)
	return resp, rpctypes.Error(err)
}

// sleep waits for d, or for the end of ctx, whose cause it returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
