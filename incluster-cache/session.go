// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// lookTimeout bounds the way to a replica's config: a connection, TLS, one read.
const lookTimeout = 5 * time.Second

// Reasons to end a session.
var (
	errConnectionLost = errors.New("connection lost")
	errConfigChanged  = errors.New("the cache says something else about itself")
	errPreferred      = errors.New("moving to a replica that is complete, or that this node prefers")
	errSpent          = errors.New("a session has one connection")
)

// refusedError says that a replica answers, and isn't read: it isn't the cache of
// this cluster, or has less than what is in force.
type refusedError struct {
	Backend string
	Err     error
}

// Error names the replica and the reason.
func (e *refusedError) Error() string { return fmt.Sprintf("refusing %s: %v", e.Backend, e.Err) }

// Unwrap gives the reason.
func (e *refusedError) Unwrap() error { return e.Err }

// connection is a connection to a replica that may be read.
type connection struct {
	replica
	client *etcd.Client
	seen   sighting
	config wire.CacheConfig
}

// complete says whether the replica had all that it offers when it was looked at. Its
// config is there before anything else is.
func (c *connection) complete() bool { return c.seen.has(c.config.Resources) }

// connect makes one connection to a replica, and looks at what answers there. The
// connection is never made anew by itself: what answers at an address may be another
// etcd by then, even that of another cluster, and the tables are not to hear of it
// before it was looked at.
func (f *follower) connect(ctx context.Context, r replica) (*connection, error) {
	client, err := f.open(r)
	if err != nil {
		return nil, err
	}
	seen, err := look(ctx, client, f.cluster.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to %s: %w", r.address, err), client.Close())
	}
	config, err := f.admit(seen)
	if err != nil {
		return nil, errors.Join(&refusedError{Backend: r.address, Err: err}, client.Close())
	}
	return &connection{replica: r, client: client, seen: seen, config: config}, nil
}

// open makes a client that makes one connection.
func (f *follower) open(r replica) (*etcd.Client, error) {
	cfg := f.directory.etcd
	cfg.Endpoints = []string{r.endpoint}
	var (
		mu    sync.Mutex
		spent bool
	)
	cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if spent {
			return nil, errSpent
		}
		conn, err := f.dial(ctx, r.address)
		spent = err == nil
		return conn, err
	}
	return etcd.NewClient(f.log, cfg)
}

// dialAddress dials host:port, or unix:path.
func dialAddress(ctx context.Context, address string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", strings.TrimPrefix(path, "//")
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// sighting is what one look at a replica has found.
type sighting struct {
	etcdID   uint64
	revision int64
	// raw is the cache's config, nil if there is none; others are the names of
	// other clusters whose cache it says it is, in that case.
	raw    []byte
	others []string
	// canaries are the resources of which all is there.
	canaries []wire.Resource
}

// has says whether all of these resources is there.
func (s *sighting) has(resources []wire.Resource) bool {
	return !slices.ContainsFunc(resources, func(r wire.Resource) bool { return !slices.Contains(s.canaries, r) })
}

// look reads what a replica says about itself. It doesn't wait for one that refuses
// the connection, as etcd's client would: there are others.
//
// It is one transaction: a read of a range outside of one is taken for a list, and put
// off while agents that come together list (etcd.ListBound).
func look(ctx context.Context, client *etcd.Client, cluster string) (sighting, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	resp, err := pb.NewKVClient(client.Etcd().ActiveConnection()).Txn(ctx, lookRequest(cluster), grpc.WaitForReady(false))
	if err != nil {
		return sighting{}, rpctypes.Error(err)
	}
	seen := sighting{etcdID: resp.Header.ClusterId, revision: resp.Header.Revision}
	first, rest := resp.Responses[0].GetResponseRange().GetKvs(), resp.Responses[1:]
	if !resp.Succeeded {
		for _, kv := range first {
			seen.others = append(seen.others, strings.TrimPrefix(string(kv.Key), wire.CacheConfigPrefix))
		}
		return seen, nil
	}
	seen.raw = first[0].Value
	for i, canary := range rest {
		if len(canary.GetResponseRange().GetKvs()) > 0 {
			seen.canaries = append(seen.canaries, wire.CacheResources[i])
		}
	}
	return seen, nil
}

// othersNamed is how many other clusters are named in the reason for a refusal.
const othersNamed = 3

// lookRequest asks for the config and the canaries, or, where there is no config, for
// those of other clusters. Nothing of it waits for the etcd's consensus.
func lookRequest(cluster string) *pb.TxnRequest {
	get := func(request pb.RangeRequest) *pb.RequestOp {
		request.Serializable = true
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &request}}
	}
	config := []byte(wire.CacheConfigKey(cluster))
	request := &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: config, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER,
			TargetUnion: &pb.Compare_Version{Version: 0},
		}},
		Success: []*pb.RequestOp{get(pb.RangeRequest{Key: config})},
		Failure: []*pb.RequestOp{get(pb.RangeRequest{
			Key:      []byte(wire.CacheConfigPrefix),
			RangeEnd: []byte(clientv3.GetPrefixRangeEnd(wire.CacheConfigPrefix)),
			KeysOnly: true, Limit: othersNamed,
		})},
	}
	for _, r := range wire.CacheResources {
		request.Success = append(request.Success, get(pb.RangeRequest{Key: []byte(wire.CanaryKey(r, cluster, false)), KeysOnly: true}))
	}
	return request
}

// admit says whether a replica is one of this cluster's cache, and has what it
// takes.
func (f *follower) admit(seen sighting) (wire.CacheConfig, error) {
	config, err := wire.ParseCacheConfig(seen.raw)
	switch {
	case errors.Is(err, wire.ErrNoCacheConfig) && len(seen.others) > 0:
		return config, fmt.Errorf("it is the cache of cluster %q, and this is %q", seen.others, f.cluster.Name)
	case err != nil:
		return config, err
	case config.ClusterID != f.cluster.ID:
		return config, fmt.Errorf("it is the cache of a cluster with ID %d, and this one has %d", config.ClusterID, f.cluster.ID)
	}
	for _, needed := range required {
		if !slices.Contains(config.Resources, needed) {
			return config, fmt.Errorf("it offers no %s, which an agent has from there or not at all", needed)
		}
	}
	if lacking := f.local.Lacks(config.Resources); lacking != "" {
		return config, fmt.Errorf("it offers no %s, which are in force: what is known of them goes when the agent is started again", lacking)
	}
	return config, nil
}

// required are the resources without which an agent has nothing to work with.
var required = []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints}

// read takes in what the replica has until the connection is lost, something else
// ends it, or ctx does. The error is never nil.
func (f *follower) read(ctx context.Context, conn *connection) error {
	ctx, end := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end(nil)
	watching.Go(func() {
		waitLost(ctx, conn.client.Etcd().ActiveConnection())
		end(errConnectionLost)
	})
	watching.Go(func() {
		if err := f.watchConfig(ctx, conn); err != nil {
			end(err)
		}
	})
	watching.Go(func() {
		if f.awaitComplete(ctx, conn) || f.preferOther(ctx, conn) {
			end(errPreferred)
		}
	})
	err := f.local.Run(ctx, conn.client, conn.config.Resources)
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// watchConfig waits until the config is another than the one that was admitted, and
// gives errConfigChanged or why it doesn't know; nil when ctx ends.
//
// It watches from the revision of the look, not from the next one, which may not be
// there yet: as long as a watch of a stream begins in the future, etcd doesn't tell
// the others of that stream, the Readers, how far they are.
func (f *follower) watchConfig(ctx context.Context, conn *connection) error {
	key, from := wire.CacheConfigKey(f.cluster.Name), conn.seen.revision
	for {
		err := watchValue(ctx, conn.client.Etcd(), key, from, conn.seen.raw)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errConfigChanged):
			return err
		case !errors.Is(err, rpctypes.ErrCompacted):
			return fmt.Errorf("watching the cache's config: %w", err)
		}
		seen, err := look(ctx, conn.client, f.cluster.Name)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("looking at the cache's config again: %w", err)
		case !bytes.Equal(seen.raw, conn.seen.raw):
			return errConfigChanged
		}
		from = seen.revision
	}
}

// watchValue watches one key until it has another value, which is errConfigChanged.
// A cache that is started again, or whose etcd was away, writes the same once more.
func watchValue(ctx context.Context, client *clientv3.Client, key string, from int64, value []byte) error {
	for resp := range client.Watch(ctx, key, clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			if ev.Type == clientv3.EventTypeDelete || !bytes.Equal(ev.Kv.Value, value) {
				return errConfigChanged
			}
		}
	}
	return errors.New("watch ended")
}

// waitLost waits until the connection is no longer usable, or ctx ends.
func waitLost(ctx context.Context, conn *grpc.ClientConn) {
	for conn.GetState() == connectivity.Ready {
		if !conn.WaitForStateChange(ctx, connectivity.Ready) {
			return
		}
	}
}
