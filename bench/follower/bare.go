// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// A bare agent opens the watches that an agent has, on a connection of its own, and
// does nothing with what it is sent: to whoever serves them it is an agent. One
// machine has processors for so many of these as it hasn't for agents, of which each
// has a node to itself elsewhere.
//
// Once it has its watches, what it is sent ends in the kernel: see deafDialer. To read it,
// to decrypt it and to be woken for it took half of two processors for 290 of them, which
// those who are measured hadn't then. That a connection ends is an error; that one watch
// does nobody notices but the API server, which counts those that are open, and those that
// it has ended since their readers were too slow.

// watched are the kinds that agents watch at the API server, by the path of all
// objects of all namespaces. Cilium's own are sent as JSON, the others as protobuf.
func watched(slices bool) map[string]string {
	const (
		asJSON     = "application/json"
		asProtobuf = "application/vnd.kubernetes.protobuf;stream=watch"
	)
	endpoints := "/apis/cilium.io/v2/ciliumendpoints"
	if slices {
		endpoints = "/apis/cilium.io/v2alpha1/ciliumendpointslices"
	}
	return map[string]string{
		endpoints:                                  asJSON,
		"/apis/cilium.io/v2/ciliumidentities":      asJSON,
		"/apis/cilium.io/v2/ciliumnodes":           asJSON,
		"/api/v1/services":                         asProtobuf,
		"/apis/discovery.k8s.io/v1/endpointslices": asProtobuf,
	}
}

// runBare is so many bare agents; opened is called when one has all its watches.
func runBare(ctx context.Context, config AgentsConfig, opened func()) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range config.Agents {
		group.Go(func() error {
			var err error
			if config.Datastore == inclustercache.DatastoreEtcd {
				err = watchEtcd(ctx, config, opened)
			} else {
				err = watchAPIServer(ctx, config, opened)
			}
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("agent %d: %w", i+1, err)
		})
	}
	return group.Wait()
}

// watchAPIServer watches what there is from now on, until ctx ends.
func watchAPIServer(ctx context.Context, config AgentsConfig, opened func()) error {
	restConfig, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return err
	}
	dialer := newDeafDialer()
	client, err := dialer.httpClient(restConfig)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	watches, ctx := errgroup.WithContext(ctx)
	kinds := watched(config.Slices)
	var left atomic.Int64
	left.Store(int64(len(kinds)))
	for path, accept := range kinds {
		watches.Go(func() error {
			body, err := insistOnWatch(ctx, client, restConfig.Host+path, accept)
			if err != nil {
				return err
			}
			if left.Add(-1) == 0 {
				if err := dialer.deafen(); err != nil {
					return errors.Join(err, body.Close())
				}
				opened()
			}
			if _, err = io.Copy(io.Discard, body); err == nil {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("watching %s: %w", path, errors.Join(err, body.Close()))
		})
	}
	return watches.Wait()
}

// insistOnWatch is openWatch as a reflector has it: a server to which a thousand come at
// once turns some away.
func insistOnWatch(ctx context.Context, client *http.Client, url, accept string) (body io.ReadCloser, err error) {
	pauses := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 8, Cap: 10 * time.Second}
	for {
		if body, err = openWatch(ctx, client, url, accept); err == nil || ctx.Err() != nil || pauses.Steps == 0 {
			return body, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pauses.Step()):
		}
	}
}

// openWatch begins a watch at the newest revision.
func openWatch(ctx context.Context, client *http.Client, url, accept string) (io.ReadCloser, error) {
	list, err := get(ctx, client, url+"?limit=1", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(list)
	if err := errors.Join(err, list.Close()); err != nil {
		return nil, fmt.Errorf("reading the revision of %s: %w", url, err)
	}
	_, rest, _ := strings.Cut(string(raw), `"resourceVersion":"`)
	revision, _, found := strings.Cut(rest, `"`)
	if !found {
		return nil, fmt.Errorf("reading the revision of %s: there is none", url)
	}
	return get(ctx, client, url+"?watch=true&allowWatchBookmarks=true&timeoutSeconds=3600&resourceVersion="+revision, accept)
}

func get(ctx context.Context, client *http.Client, url, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("getting %s: %s", url, resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}

// watchEtcd watches what the Readers of an agent do, until the first watch ends. The etcd
// runs before agents are started.
func watchEtcd(ctx context.Context, config AgentsConfig, opened func()) error {
	_, address, _ := strings.Cut(config.KVStoreOpt, etcd.OptAddress+"=")
	dialer := newDeafDialer()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dialer.dial(ctx, "tcp", address) }),
		grpc.WithInitialWindowSize(deafWindow), grpc.WithInitialConnWindowSize(deafWindow),
		grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy": "round_robin"}`), // as etcd.NewClient has it, and why
	}})
	if err != nil {
		return fmt.Errorf("creating etcd client: %w", err)
	}
	defer client.Close()
	cluster := wire.DefaultClusterInfo.Name
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	prefixes := []string{wire.CacheConfigKey(cluster), wire.StateRoot} // the Readers share one
	created, ended := make(chan struct{}, len(prefixes)), make(chan error, len(prefixes))
	for _, prefix := range prefixes {
		go func() {
			for resp := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify()) {
				if resp.Created {
					created <- struct{}{}
				}
				if err := resp.Err(); err != nil {
					ended <- fmt.Errorf("watching %q: %w", prefix, err)
					return
				}
			}
			ended <- fmt.Errorf("watching %q: it ended: %w", prefix, io.ErrUnexpectedEOF)
		}()
	}
	for range prefixes {
		select {
		case <-created:
		case err := <-ended:
			return err
		case <-time.After(startPatience):
			return errors.New("etcd has not begun all watches")
		}
	}
	if err := dialer.deafen(); err != nil {
		return err
	}
	opened()
	select {
	case err := <-ended:
		return err
	case err := <-dialer.lost:
		return err
	}
}

const (
	// deafWindow is what may be sent before anybody says that it was read, per watch and per
	// connection: in a minute of 105 changes a second it is some 15 MiB. HTTP/2 allows 2 GiB.
	deafWindow = 1 << 30
	// emptyEvery is the time between two looks of a deaf connection at what has come, in
	// which at 105 changes a second some 32 KiB do: a quarter of what Linux receives for a
	// connection that nobody reads (tcp_rmem).
	emptyEvery = 200 * time.Millisecond
)

// deafDialer makes connections that are read as others are, until they are deafened: what
// comes after that is thrown away in the kernel, and nothing but the connection's end is
// read. Clients of them expect no answer then, not to a ping either, and have a window of
// deafWindow. There are no further connections.
type deafDialer struct {
	mu    sync.Mutex
	conns []*deafConn
	deaf  bool
	// lost has an error when one is asked for nevertheless: the others are gone.
	lost chan error
}

func newDeafDialer() *deafDialer { return &deafDialer{lost: make(chan error, 1)} }

func (d *deafDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deaf {
		err := fmt.Errorf("the connection to %s is lost: %w", address, io.ErrUnexpectedEOF)
		select {
		case d.lost <- err:
		default:
		}
		return nil, errors.Join(err, conn.Close())
	}
	deaf := &deafConn{Conn: conn}
	d.conns = append(d.conns, deaf)
	return deaf, nil
}

// deafen deafens the connections that were made.
func (d *deafDialer) deafen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = true
	var errs []error
	for _, conn := range d.conns {
		errs = append(errs, conn.deafen())
	}
	return errors.Join(errs...)
}

// httpClient is a client by such connections, with the credentials of a REST client, and
// without a proxy. One of client-go's own pings a connection on which nothing was read for
// half a minute.
func (d *deafDialer) httpClient(config *rest.Config) (*http.Client, error) {
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(config, &http.Transport{
		DialContext: d.dial, TLSClientConfig: tls, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: startPatience,
		// Its documentation has the limit at 4 MiB, which Go doesn't keep to. If it did, each
		// watch would end in the server's waiting after so much: TestDeafHTTP finds that.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: deafWindow},
	})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: transport}, nil
}

// deafConn is a TCP connection, read by one goroutine, as TLS, HTTP/2 and gRPC do.
type deafConn struct {
	net.Conn
	mu     sync.Mutex
	closed bool
	// file is the connection once it is deaf: a descriptor that Go's runtime doesn't know
	// of. Of those that it knows the kernel tells it each event, whether somebody waits for
	// that or not.
	file *os.File
}

// deafen leaves a connection alone that is closed: of those that are made for the first
// requests HTTP/2 keeps one.
func (c *deafConn) deafen() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var another int
	failed := raw.Control(func(fd uintptr) { another, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if failed != nil || err != nil {
		return fmt.Errorf("deafening the connection to %s: %w", c.RemoteAddr(), errors.Join(failed, err))
	}
	err = c.Conn.Close() // which wakes who reads
	if blocks := unix.SetNonblock(another, false); blocks != nil {
		// NewFile would tell the runtime of it.
		return errors.Join(err, blocks, unix.Close(another))
	}
	c.file = os.NewFile(uintptr(another), "deaf")
	return err
}

// deaf is nil if the connection isn't.
func (c *deafConn) deaf() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file
}

// Close implements net.Conn.
func (c *deafConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.file != nil {
		return c.file.Close()
	}
	return c.Conn.Close()
}

// Write implements net.Conn. Little is written once it is deaf; where there is no room for
// that, it fails.
func (c *deafConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	file := c.deaf()
	if file == nil || !errors.Is(err, net.ErrClosed) {
		return n, err
	}
	err = control(file, func(fd int) (err error) {
		var more int
		more, err = unix.SendmsgN(fd, p[n:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		n += max(0, more)
		return os.NewSyscallError("sendmsg", err)
	})
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// Read implements net.Conn.
func (c *deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	file := c.deaf()
	if file == nil || !errors.Is(err, net.ErrClosed) {
		return n, err
	}
	for {
		if err := control(file, discard); err != nil {
			return 0, err
		}
		time.Sleep(emptyEvery) // that is the point of it
	}
}

// control calls do with the descriptor of a file that is open meanwhile.
func control(file *os.File, do func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) { err = do(int(fd)) }); failed != nil {
		return failed
	}
	return err
}

// discard throws away what has come by a TCP connection, of which the kernel takes MSG_TRUNC
// to mean that it is neither copied nor kept, however much room there is said to be for it.
func discard(fd int) error {
	for {
		n, _, err := unix.Recvfrom(fd, nowhere, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR) || n > 0:
		case n == 0 && err == nil:
			return io.EOF
		case errors.Is(err, unix.EAGAIN):
			return nil
		default:
			return os.NewSyscallError("recvfrom", err)
		}
	}
}

// nowhere is never written to, but by who isn't TCP.
var nowhere = make([]byte, 1<<20)

// startPatience is how long a bare agent waits for its watches.
const startPatience = time.Minute
