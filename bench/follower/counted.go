// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// CountedConfig is what a benchmark tells an etcd that counts lists.
type CountedConfig struct {
	// DataDir and ListenURL are those of "waggle etcd".
	DataDir, ListenURL string
	// Socket is the path of the Unix socket to serve ListStatus on.
	Socket string
}

// Register adds the flags, by the names of "waggle etcd".
func (c *CountedConfig) Register(flags *pflag.FlagSet) {
	flags.StringVar(&c.DataDir, "data-dir", "", "Directory of the etcd's data")
	flags.StringVar(&c.ListenURL, "listen-client-urls", "", "URL to serve clients at")
	flags.StringVar(&c.Socket, "socket", "", "Path of the socket to tell what was listed")
}

// ListStatus is what an etcd has listed since the status was last asked for. A
// list is of one prefix for one client: from when the request for its first page
// has arrived until the last page was made.
type ListStatus struct {
	// Lists is the number of lists that began.
	Lists int `json:"lists"`
	// Peak is the most lists that were under way at once.
	Peak int `json:"peak_lists"`
	// PeakPages is the most pages that were made at once.
	PeakPages int `json:"peak_pages"`
	// SentBytes is what the etcd has sent to clients, from its start on.
	SentBytes int64 `json:"sent_bytes"`
}

// AskLists asks the etcd at a socket, and has it count anew.
func AskLists(ctx context.Context, socket string) (status ListStatus, err error) {
	err = ask(ctx, socket, &status)
	return status, err
}

// RunCounted is "waggle etcd" with a count of the lists that it is asked for. It
// returns nil when ctx ends.
func RunCounted(ctx context.Context, config CountedConfig) (err error) {
	lists := &listCounter{under: map[listKey]struct{}{}}
	server, err := etcd.StartServer(ctx, etcd.ServerConfig{
		Dir: config.DataDir, ListenURL: config.ListenURL,
		GRPC: []grpc.ServerOption{grpc.ChainUnaryInterceptor(lists.intercept)},
	})
	if err != nil {
		return err
	}
	defer server.Close()
	status := newServer(config.Socket, func() any { return lists.take() })
	if err := status.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, status.Stop(ctx)) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return fmt.Errorf("serving: %w", err)
	}
}

// listKey is one list: a client's connection, and the end of the range.
type listKey struct{ client, end string }

// listCounter counts lists, at the server, whatever the client's program is.
type listCounter struct {
	mu     sync.Mutex
	under  map[listKey]struct{}
	pages  int
	status ListStatus
}

// intercept sees each request. A list is a series of ranges with the same end, of
// which the first begins where its prefix does.
func (c *listCounter) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	r, ok := req.(*pb.RangeRequest)
	if !ok || len(r.RangeEnd) == 0 || r.CountOnly {
		return handler(ctx, req)
	}
	key := listKey{end: string(r.RangeEnd)}
	if client, ok := peer.FromContext(ctx); ok {
		key.client = client.Addr.String()
	}
	first := clientv3.GetPrefixRangeEnd(string(r.Key)) == key.end
	c.begin(key, first)
	resp, err := handler(ctx, req)
	page, ok := resp.(*pb.RangeResponse)
	c.end(key, err != nil || !ok || !page.More)
	return resp, err
}

func (c *listCounter) begin(key listKey, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages++; c.pages > c.status.PeakPages {
		c.status.PeakPages = c.pages
	}
	if first {
		c.status.Lists++
	}
	c.under[key] = struct{}{}
	c.status.Peak = max(c.status.Peak, len(c.under))
}

func (c *listCounter) end(key listKey, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pages--
	if last {
		delete(c.under, key)
	}
}

// take gives the status and counts anew.
func (c *listCounter) take() ListStatus {
	c.mu.Lock()
	status := c.status
	c.status = ListStatus{Peak: len(c.under), PeakPages: c.pages}
	c.mu.Unlock()
	status.SentBytes = sentBytes()
	return status
}

// sentBytes is etcd's own count, which its package keeps for the process.
func sentBytes() int64 {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		return 0
	}
	for _, f := range families {
		if f.GetName() == "etcd_network_client_grpc_sent_bytes_total" && len(f.GetMetric()) > 0 {
			return int64(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return 0
}
