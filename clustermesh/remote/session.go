// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// answerLimit is how long an etcd may stay away before Run is ended and the
	// client is made anew, with addresses and certificates read again.
	answerLimit = 30 * time.Second
	// connectLimit is the same where nothing runs that would be interrupted. It
	// is twice what one attempt may take.
	connectLimit = 10 * time.Second
	// readTimeout bounds one read of the cluster config.
	readTimeout = 5 * time.Second
)

var errRunEnded = errors.New("following the cluster ended early")

// running is one call of Handler.Run.
type running struct {
	raw    []byte // the cluster config that it was called with
	config wire.ClusterConfig
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // once ended is closed
}

// sighting is what one look at the source has found.
type sighting struct {
	etcdID   uint64
	revision int64
	raw      []byte // the cluster config, nil if there is none
	// reconnected is closed when there is a connection newer than the one that
	// this came over: maybe to another etcd.
	reconnected <-chan struct{}
}

// session is one connection, from its making until it is given up; the error
// says why. It looks at the source again whenever that may have become another
// one. ctx is the job's, and step ends at an interruption.
func (c *cluster) session(ctx, step context.Context) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	defer c.stop()
	var dog *watchdog
	for {
		seen, err := c.look(step, client)
		if err != nil {
			return err
		}
		if dog == nil {
			dog = newWatchdog(c.cfg.clock)
			defer dog.stop()
		}
		c.status.answers(seen.etcdID)
		freed := c.adopt(ctx, step, client, seen.raw)
		if err := c.watch(step, client, seen, freed, dog); err != nil {
			return err
		}
	}
}

// look waits until the etcd answers and reads the cluster config. The key is
// the one that a remote cluster may read in any case.
func (c *cluster) look(ctx context.Context, client *etcd.Client) (sighting, error) {
	key := wire.ClusterConfigKey(c.name)
	limit := c.cfg.connectLimit
	if c.run != nil {
		limit = c.cfg.answerLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	failed := func(err error) {
		last = err
		c.gone()
		c.status.lost(err)
	}
	for {
		if _, err := client.WaitReady(ctx, key, failed); err != nil {
			if last != nil {
				err = fmt.Errorf("no answer within %s: %w", limit, last)
			}
			return sighting{}, err
		}
		seen, err := read(ctx, client, key)
		if err == nil {
			return seen, nil
		}
		failed(err)
	}
}

// read reads from whatever member it reaches: a stale answer is followed by the
// watch, and one that has lost its quorum can still say what it knows.
func read(ctx context.Context, client *etcd.Client, key string) (sighting, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	_, reconnected := client.Generation()
	resp, err := client.Etcd().Get(ctx, key, clientv3.WithSerializable())
	if err != nil {
		return sighting{}, fmt.Errorf("reading cluster configuration: %w", err)
	}
	seen := sighting{etcdID: resp.Header.ClusterId, revision: resp.Header.Revision, reconnected: reconnected}
	if len(resp.Kvs) > 0 {
		seen.raw = resp.Kvs[0].Value
	}
	return seen, nil
}

// adopt has the Handler follow the source under the given cluster config. If
// that isn't possible for another cluster's sake, freed says when it may be.
func (c *cluster) adopt(ctx, step context.Context, client *etcd.Client, raw []byte) (freed <-chan struct{}) {
	if c.run != nil && bytes.Equal(raw, c.run.raw) {
		c.follows(c.run.config)
		return nil
	}
	config, err := wire.ParseClusterConfig(raw)
	if err != nil {
		// A config that is gone, or damaged, doesn't make this another cluster:
		// what is followed is followed on.
		c.status.problem(explain(err))
		if c.run != nil {
			c.back()
		}
		return nil
	}
	if freed, err = c.admit(config); err != nil {
		c.stop()
		c.gone()
		c.status.problem(explain(err))
		return freed
	}
	c.stop()
	if c.id != 0 && c.id != config.ID {
		c.log.Warn("Remote cluster has another ID: draining what is known of it",
			"old-cluster-id", c.id, "cluster-id", config.ID)
		c.handler.Reset(ctx)
		c.ids.release(c.id, c.name)
	}
	c.id = config.ID
	c.follows(config)
	c.start(step, Connection{Cluster: c.name, Client: client, Config: config, RawConfig: raw})
	return nil
}

func explain(err error) error {
	if errors.Is(err, wire.ErrNoClusterConfig) {
		// What upstream's hint says as well.
		return fmt.Errorf("%w: is the cluster's name right, and if this is its KVStoreMesh's etcd, is that connected to it?", err)
	}
	return fmt.Errorf("refusing cluster configuration: %w", err)
}

// admit says whether a cluster with this config can be part of the mesh, and
// reserves its ID.
func (c *cluster) admit(config wire.ClusterConfig) (freed <-chan struct{}, err error) {
	if err := wire.ValidateClusterConfig(c.cfg.local, config); err != nil {
		return nil, err
	}
	if config.ID == c.cfg.local.ID {
		return nil, fmt.Errorf("cluster ID %d is our own", config.ID)
	}
	return c.ids.reserve(config.ID, c.name)
}

// follows notes that the cluster is there.
func (c *cluster) follows(config wire.ClusterConfig) {
	c.known = true
	c.back()
	c.status.follows(config)
}

// start calls Run. It must not run already.
func (c *cluster) start(ctx context.Context, conn Connection) {
	ctx, cancel := context.WithCancel(ctx)
	run := &running{raw: conn.RawConfig, config: conn.Config, cancel: cancel, ended: make(chan struct{})}
	c.run = run
	c.current.Store(&conn)
	c.log.Info("Following remote cluster", "cluster-id", conn.Config.ID, "cached", conn.Config.Capabilities.Cached)
	go func() {
		defer close(run.ended)
		if run.err = c.handler.Run(ctx, conn); run.err == nil {
			run.err = errRunEnded
		}
	}()
}

// stop ends Run, if it runs, and waits for it.
func (c *cluster) stop() {
	if c.run == nil {
		return
	}
	c.current.Store(nil)
	c.run.cancel()
	<-c.run.ended
	c.run = nil
}

// watch waits until there is reason to look at the source again (nil), or to
// give the connection up.
func (c *cluster) watch(ctx context.Context, client *etcd.Client, seen sighting, freed <-chan struct{}, dog *watchdog) error {
	// watching ends when the connection is lost: the etcd client's watches go on
	// by themselves and say nothing of it, and making one waits for the server.
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	var lost sync.WaitGroup
	defer lost.Wait()
	defer cancel()
	lost.Go(func() {
		waitLost(watching, client.Etcd().ActiveConnection())
		cancel()
	})
	var ended chan struct{}
	if c.run != nil {
		ended = c.run.ended
	}
	key := wire.ClusterConfigKey(c.name)
	config := client.Etcd().Watch(watching, key, clientv3.WithRev(seen.revision+1))
	beats := client.Etcd().Watch(watching, wire.HeartbeatKey, clientv3.WithRev(seen.revision+1))
	for {
		var err error
		select {
		case <-watching.Done():
		case <-seen.reconnected:
			return nil
		case <-freed:
			return nil
		case <-ended:
			return c.run.err
		case <-dog.expired():
			return dog.err()
		case resp, ok := <-config:
			if err = watchError(key, resp, ok); err == nil && len(resp.Events) > 0 {
				return nil
			}
		case resp, ok := <-beats:
			if err = watchError(wire.HeartbeatKey, resp, ok); err == nil {
				dog.observe(resp.Events)
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case watching.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
}

func watchError(key string, resp clientv3.WatchResponse, ok bool) error {
	err := resp.Err()
	if err == nil && (!ok || resp.Canceled) {
		err = errors.New("watch ended")
	}
	if err != nil {
		return fmt.Errorf("watching %q: %w", key, err)
	}
	return nil
}

// waitLost waits until the connection is no longer usable, or ctx ends.
func waitLost(ctx context.Context, conn *grpc.ClientConn) {
	for conn.GetState() == connectivity.Ready {
		if !conn.WaitForStateChange(ctx, connectivity.Ready) {
			return
		}
	}
}
