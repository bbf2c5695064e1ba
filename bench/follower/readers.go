// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ReadersConfig is what a benchmark tells its readers.
type ReadersConfig struct {
	// Endpoint is the URL of the etcd, or of the proxy before it.
	Endpoint string
	// Prefix is what each of them watches.
	Prefix string
	// Readers is their number.
	Readers int
	// Socket is the path of the Unix socket to serve ReadersStatus on.
	Socket string
	// Run is the run whose events count.
	Run int
}

// Register adds the flags.
func (c *ReadersConfig) Register(flags *pflag.FlagSet) {
	flags.StringVar(&c.Endpoint, "endpoint", "", "URL of the etcd")
	flags.StringVar(&c.Prefix, "prefix", "", "Prefix to watch")
	flags.IntVar(&c.Readers, "readers", 1, "Number of readers")
	flags.StringVar(&c.Socket, "socket", "", "Path of the socket to tell what has arrived")
	flags.IntVar(&c.Run, "run", 0, "Number of the run whose events count")
}

// ReadersStatus is what all readers have seen so far.
type ReadersStatus struct {
	// Watching is how many of them have begun to watch.
	Watching int
	// Delivered is the number of events of the run that they were sent, over all
	// readers; Least of the one that has the fewest; and Sum the sum of their
	// numbers, by which a repeated event in place of a lost one is found.
	Delivered, Least, Sum int
	// Messages is in how many responses these were, over all readers.
	Messages int
	// Bytes is all that was received by their connections, from the first on.
	Bytes int64
	// Latencies are of each event since it was due, in microseconds, and Commits
	// only of the last one of each commit: the time without what the others
	// waited for it.
	Latencies, Commits *hdrhistogram.Snapshot
}

// openingAtOnce is the number of readers that connect at a time, so that none
// of them waits for long.
const openingAtOnce = 32

// RunReaders watches one prefix as so many agents would, each with a client and
// a connection of its own, and nothing behind it that takes the processor. It
// returns nil when ctx ends, and before that the first reader's error.
func RunReaders(ctx context.Context, log *slog.Logger, config ReadersConfig) (err error) {
	r := &readers{
		config: config, log: log, begun: make([]bool, config.Readers), counts: make([]int, config.Readers),
		latencies: NewHistogram(), commits: NewHistogram(),
	}
	server := newServer(config.Socket, func() any { return r.now() })
	if err := server.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop(ctx)) }()
	opening := semaphore.NewWeighted(openingAtOnce)
	all, running := errgroup.WithContext(ctx)
	for i := range config.Readers {
		all.Go(func() error { return r.read(running, i, opening) })
	}
	if err := all.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// readers is what they have in common.
type readers struct {
	config   ReadersConfig
	log      *slog.Logger
	received atomic.Int64

	mu                       sync.Mutex
	watching, delivered, sum int
	messages                 int
	begun                    []bool // by reader
	counts                   []int  // of delivered, by reader
	latencies, commits       *hdrhistogram.Histogram
}

// read is one reader: it connects, finds the etcd's revision, as an agent does
// by its list, and watches from there.
func (r *readers) read(ctx context.Context, i int, opening *semaphore.Weighted) error {
	if err := opening.Acquire(ctx, 1); err != nil {
		return err
	}
	release := sync.OnceFunc(func() { opening.Release(1) })
	defer release()
	client, err := etcd.NewClient(r.log, etcd.ClientConfig{Endpoints: []string{r.config.Endpoint}, Dial: r.dial})
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.WaitReady(ctx, wire.HeartbeatKey, func(error) {}); err != nil {
		return err
	}
	at, err := client.Etcd().Get(ctx, r.config.Prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("reading the revision: %w", err)
	}
	// As cells/etcd's Reader does.
	responses := client.Etcd().Watch(clientv3.WithRequireLeader(ctx), r.config.Prefix, clientv3.WithPrefix(),
		clientv3.WithRev(at.Header.Revision+1), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for resp := range responses {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watching %q: %w", r.config.Prefix, err)
		}
		if resp.Created {
			release()
		}
		r.see(i, &resp, time.Now())
	}
	return fmt.Errorf("watching %q: it ended: %w", r.config.Prefix, context.Cause(ctx))
}

// see takes in what the i-th reader was sent.
func (r *readers) see(i int, resp *clientv3.WatchResponse, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if resp.Created && !r.begun[i] {
		r.begun[i] = true // a client that had to connect again is told so again
		r.watching++
	}
	found := false
	for n, ev := range resp.Events {
		stamp, ok := FindStamp(ev.Kv.Value)
		if !ok || stamp.Run != r.config.Run {
			continue
		}
		found = true
		r.delivered++
		r.counts[i]++
		r.sum += stamp.Number
		Record(r.latencies, at.Sub(stamp.Due))
		if n == len(resp.Events)-1 || resp.Events[n+1].Kv.ModRevision != ev.Kv.ModRevision {
			Record(r.commits, at.Sub(stamp.Due))
		}
	}
	if found {
		r.messages++
	}
}

func (r *readers) now() ReadersStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return ReadersStatus{
		Watching: r.watching, Delivered: r.delivered, Least: slices.Min(r.counts), Sum: r.sum, Messages: r.messages,
		Bytes: r.received.Load(), Latencies: r.latencies.Export(), Commits: r.commits.Export(),
	}
}

// dial connects and counts what is received.
func (r *readers) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return countedConn{Conn: conn, received: &r.received}, nil
}

// countedConn counts the bytes that are read from a connection.
type countedConn struct {
	net.Conn
	received *atomic.Int64
}

// Read implements net.Conn.
func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

// AskReaders asks the readers that serve a socket.
func AskReaders(ctx context.Context, socket string) (status ReadersStatus, err error) {
	err = ask(ctx, socket, &status)
	return status, err
}
