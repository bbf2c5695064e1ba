// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// clusterConfigOf is what this cluster says about its etcd. As upstream has it,
// service exports are always declared on or off, never left out.
func clusterConfigOf(cluster wire.ClusterInfo, mcsAPI bool, region string) wire.ClusterConfig {
	return wire.ClusterConfig{
		ID: cluster.ID,
		Capabilities: wire.Capabilities{
			SyncedCanaries:        true,
			MaxConnectedClusters:  cluster.MaxConnectedClusters,
			ServiceExportsEnabled: &mcsAPI,
		},
		Region: region,
	}
}

// clusterConfig keeps the cluster config as it should be: it is written at
// start, before and independently of what it describes, and again whenever it
// is found to be something else. Without it no remote cluster connects.
type clusterConfig struct {
	log    *slog.Logger
	client *etcd.Client
	writer *etcd.Writer
	name   string
	value  []byte
	// rewrite asks for the config to be written; written is closed when it was.
	rewrite chan struct{}
	written chan struct{}
}

func newClusterConfig(log *slog.Logger, client *etcd.Client, writer *etcd.Writer, name string, config wire.ClusterConfig) (*clusterConfig, error) {
	value, err := wire.MarshalClusterConfig(config)
	if err != nil {
		return nil, fmt.Errorf("encoding the cluster config of %q: %w", name, err)
	}
	return &clusterConfig{
		log: log, client: client, writer: writer, name: name, value: value,
		rewrite: make(chan struct{}, 1), written: make(chan struct{}),
	}, nil
}

// ask has the config written; many calls before it is are one.
func (c *clusterConfig) ask() {
	select {
	case c.rewrite <- struct{}{}:
	default:
	}
}

// write puts the config into etcd at start and each time that it is asked to,
// until ctx ends.
func (c *clusterConfig) write(ctx context.Context, health cell.Health) error {
	for {
		// A new Scope knows nothing of what etcd holds, so it writes in any case;
		// one that has written the config before would take it for a no-op.
		scope := c.writer.Scope(etcd.ScopeConfig{
			Prefix: wire.ClusterConfigPrefix,
			Lease:  true,
			Refill: func([]string) { c.ask() },
		})
		scope.Apply([]etcd.Op{{Key: c.name, Value: c.value}})
		if err := scope.Barrier(ctx); err != nil {
			return nil
		}
		health.OK("Written")
		select {
		case <-c.written:
		default:
			close(c.written)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.rewrite:
			scope.Close()
		}
	}
}

// watch looks for changes that somebody else makes, from the first time on that
// the config was written, until ctx ends.
func (c *clusterConfig) watch(ctx context.Context, _ cell.Health) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.written:
	}
	return etcd.NewReader(etcd.ReaderConfig{Log: c.log, Prefix: wire.ClusterConfigPrefix}, c).Run(ctx, c.client)
}

// OnBatch compares the configs that etcd holds with what ours should be. Those
// of other clusters are KVStoreMesh's, and none of our business.
func (c *clusterConfig) OnBatch(_ context.Context, batch etcd.Batch) {
	for _, event := range batch.Events {
		if event.Key != c.name || (!event.Deleted && bytes.Equal(event.Value, c.value)) {
			continue
		}
		c.log.Warn("The cluster config isn't what it should be, writing it again",
			"cluster", c.name, "deleted", event.Deleted)
		c.ask()
	}
}
