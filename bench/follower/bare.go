// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
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
// Once it has its watches it reads what has come every readEvery, and the kernel receives it
// meanwhile: to be woken for each event took more than half of two processors for 280 of
// them, which those who are measured hadn't then.

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
func runBare(ctx context.Context, log *slog.Logger, config AgentsConfig, opened func()) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range config.Agents {
		group.Go(func() error {
			var err error
			if config.Datastore == inclustercache.DatastoreEtcd {
				err = watchEtcd(ctx, log, config, opened)
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
	// With a dialer of its own a client has a connection of its own.
	var dialer lazyDialer
	restConfig.Dial = dialer.dial
	client, err := rest.HTTPClientFor(restConfig)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	watches, ctx := errgroup.WithContext(ctx)
	kinds := watched(config.Slices)
	var left atomic.Int64
	left.Store(int64(len(kinds)))
	for path, accept := range kinds {
		begun := sync.OnceFunc(func() {
			if left.Add(-1) == 0 {
				dialer.lazy.Store(true)
				opened()
			}
		})
		watches.Go(func() error {
			// The API server ends the watch of a reader that is too slow, and counts that.
			for ctx.Err() == nil {
				body, err := insistOnWatch(ctx, client, restConfig.Host+path, accept)
				if err != nil {
					return err
				}
				begun()
				_, err = io.Copy(io.Discard, body)
				if err := errors.Join(err, body.Close()); err != nil {
					return fmt.Errorf("watching %s: %w", path, err)
				}
			}
			return nil
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
func watchEtcd(ctx context.Context, log *slog.Logger, config AgentsConfig, opened func()) error {
	_, address, _ := strings.Cut(config.KVStoreOpt, etcd.OptAddress+"=")
	var dialer lazyDialer
	client, err := etcd.NewClient(log, etcd.ClientConfig{Endpoints: []string{address}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return dialer.dial(ctx, "tcp", address)
	}})
	if err != nil {
		return err
	}
	defer client.Close()
	cluster := wire.DefaultClusterInfo.Name
	if _, err := client.WaitReady(ctx, wire.CacheConfigKey(cluster), func(error) {}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	prefixes := []string{wire.CacheConfigKey(cluster), wire.StateRoot} // the Readers share one
	created, ended := make(chan struct{}, len(prefixes)), make(chan error, len(prefixes))
	for _, prefix := range prefixes {
		go func() {
			for resp := range client.Etcd().Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify()) {
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
	dialer.lazy.Store(true)
	opened()
	return <-ended
}

// readEvery is the time between two reads, in which at 105 changes a second some 32 KiB come:
// a quarter of what Linux receives for a connection that nobody reads (tcp_rmem).
const readEvery = 200 * time.Millisecond

// lazyDialer makes connections that are read as they are used until lazy is set, and then
// every readEvery.
type lazyDialer struct{ lazy atomic.Bool }

func (d *lazyDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &lazyConn{Conn: conn, lazy: &d.lazy}, nil
}

// lazyConn is read by one goroutine, as TLS, HTTP/2 and gRPC do.
type lazyConn struct {
	net.Conn
	lazy *atomic.Bool
	// received is what was read and isn't handed over, in buffer.
	received, buffer []byte
	// rest is when to read again: at once if there was more than the buffer has room for.
	rest time.Time
}

// Read implements net.Conn.
func (c *lazyConn) Read(p []byte) (int, error) {
	if len(c.received) == 0 {
		if !c.lazy.Load() {
			return c.Conn.Read(p)
		}
		if c.buffer == nil {
			c.buffer = make([]byte, 64<<10)
		}
		time.Sleep(time.Until(c.rest)) // that is the point of it
		n, err := c.Conn.Read(c.buffer)
		if n == 0 {
			return 0, err
		}
		c.received, c.rest = c.buffer[:n], time.Time{}
		if n < len(c.buffer) {
			c.rest = time.Now().Add(readEvery)
		}
	}
	n := copy(p, c.received)
	c.received = c.received[n:]
	return n, nil
}

// startPatience is how long a bare agent waits for its watches.
const startPatience = time.Minute
