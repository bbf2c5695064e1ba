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
// those who are measured hadn't then. That a watch ends is noticed by nobody afterwards
// but the API server, which counts those that are open, and those that it has ended since
// their readers were too slow.

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
	var dialer deafDialer
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

// watchEtcd watches what the Readers of an agent do, until the first watch ends.
func watchEtcd(ctx context.Context, config AgentsConfig, opened func()) error {
	_, address, _ := strings.Cut(config.KVStoreOpt, etcd.OptAddress+"=")
	var dialer deafDialer
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dialer.dial(ctx, "tcp", address) }),
		grpc.WithInitialWindowSize(deafWindow), grpc.WithInitialConnWindowSize(deafWindow),
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
	return <-ended
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
// deafWindow.
type deafDialer struct {
	mu    sync.Mutex
	conns []*deafConn
}

func (d *deafDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	deaf := &deafConn{TCPConn: conn.(*net.TCPConn)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = append(d.conns, deaf)
	return deaf, nil
}

// deafen deafens the connections that were made.
func (d *deafDialer) deafen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, conn := range d.conns {
		errs = append(errs, conn.deafen())
	}
	return errors.Join(errs...)
}

// httpClient is a client by such connections, with the credentials of a REST client. One of
// client-go's own pings a connection on which nothing was read for half a minute.
func (d *deafDialer) httpClient(config *rest.Config) (*http.Client, error) {
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(config, &http.Transport{
		DialContext: d.dial, TLSClientConfig: tls, ForceAttemptHTTP2: true,
		// Its documentation has the limit at 4 MiB; TestDeafHTTP would find it.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: deafWindow},
	})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: transport}, nil
}

// deafConn is read by one goroutine, as TLS, HTTP/2 and gRPC do.
type deafConn struct {
	*net.TCPConn
	mu sync.Mutex
	// rest is the connection once it is deaf: a descriptor that Go's runtime doesn't know
	// of. Of those that it knows the kernel tells it each event, whether somebody waits for
	// that or not.
	rest *os.File
}

func (c *deafConn) deafen() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var rest int
	failed := raw.Control(func(fd uintptr) { rest, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	switch {
	case errors.Is(failed, net.ErrClosed):
		return nil // of those that are made for the first requests HTTP/2 keeps one
	case failed != nil || err != nil:
		return fmt.Errorf("deafening the connection to %s: %w", c.RemoteAddr(), errors.Join(failed, err))
	}
	err = c.TCPConn.Close()
	err = errors.Join(err, unix.SetNonblock(rest, false)) // else NewFile tells the runtime
	c.rest = os.NewFile(uintptr(rest), "deaf")
	return err
}

// deaf is nil if the connection isn't.
func (c *deafConn) deaf() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rest
}

// Close implements net.Conn.
func (c *deafConn) Close() error {
	if rest := c.deaf(); rest != nil {
		return rest.Close()
	}
	return c.TCPConn.Close()
}

// Write implements net.Conn.
func (c *deafConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	if rest := c.deaf(); n == 0 && rest != nil {
		return rest.Write(p)
	}
	return n, err
}

// Read implements net.Conn.
func (c *deafConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	rest := c.deaf()
	if n > 0 || rest == nil {
		return n, err
	}
	for {
		if err := empty(rest); err != nil {
			return 0, err
		}
		time.Sleep(emptyEvery) // that is the point of it
	}
}

// empty throws away what has come by a TCP connection: the kernel takes MSG_TRUNC to mean
// that it is neither copied nor kept, however much room there is said to be for it.
func empty(conn *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var received error
	if err := raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), nowhere, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR) || n > 0:
				continue
			case n == 0 && err == nil:
				received = io.EOF
			case !errors.Is(err, unix.EAGAIN):
				received = os.NewSyscallError("recvfrom", err)
			}
			return
		}
	}); err != nil {
		return err
	}
	return received
}

// nowhere is never written to.
var nowhere = make([]byte, 1<<20)

// startPatience is how long a bare agent waits for its watches.
const startPatience = time.Minute
