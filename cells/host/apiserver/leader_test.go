// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/api/v1/kvstoremesh/server/restapi/cluster"
	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/clustermesh-apiserver/syncstate"
	upstream "github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
	"github.com/waggle-mesh/waggle/testing/relay"
)

const (
	patience = 2 * time.Minute
	tick     = 10 * time.Millisecond
)

// replica is one KVStoreMesh of several on an etcd.
type replica struct {
	*mesh.Hive
	metrics  upstream.Metrics
	state    syncstate.SyncState
	clusters cluster.GetClusterHandler
	ended    chan struct{} // closed when it asks to be ended
	once     sync.Once
}

// Shutdown implements hive.Shutdowner.
func (r *replica) Shutdown(...hive.ShutdownOption) { r.once.Do(func() { close(r.ended) }) }

// newReplica makes one whose lock lives for ttl, or as long as upstream's if that is 0. A
// short one is for tests that wait for its end: a machine that stalls for so long moves
// the leadership.
func newReplica(t *testing.T, name string, id uint32, local string, remotes *mesh.Directory, ttl time.Duration) *replica {
	r := &replica{ended: make(chan struct{})}
	r.Hive = mesh.NewHive(t, mesh.Flags{
		"cluster-name": name, "cluster-id": fmt.Sprint(id),
		"kvstore-opt":        etcd.OptAddress + "=" + local,
		"clustermesh-config": remotes.Path,
		"enable-heartbeat":   "true",
		"drain-grace-period": "0s",
		"health-port":        "0",
		"api-serve-addr":     "127.0.0.1:0",
		"enable-gops":        "false",
		"shell-sock-path":    filepath.Join(t.TempDir(), "shell.sock"),
	}, KVStoreMesh,
		cell.Provide(func() electionTimes { return electionTimes{lockTTL: ttl} }),
		cell.DecorateAll(func(hive.Shutdowner) hive.Shutdowner { return r }),
		cell.Invoke(func(m upstream.Metrics, s syncstate.SyncState, h cluster.GetClusterHandler) {
			r.metrics, r.state, r.clusters = m, s, h
		}))
	return r
}

func (r *replica) leads() bool { return r.metrics.LeaderElectionStatus.Get() == 1 }

// shown is what GET /v1/cluster answers.
func (r *replica) shown(t *testing.T) []*models.RemoteCluster {
	t.Helper()
	answer, ok := r.clusters.Handle(cluster.GetClusterParams{}).(*cluster.GetClusterOK)
	require.True(t, ok)
	return answer.Payload
}

// fill writes a cluster that has endpoints and nothing else, as its exporter would.
func fill(t *testing.T, c *mesh.Cluster, endpoints int) {
	t.Helper()
	put := func(key, value string) {
		_, err := c.Etcd.Client().Etcd().Put(t.Context(), key, value)
		require.NoError(t, err)
	}
	put(wire.ClusterConfigKey(c.Name), fmt.Sprintf(`{"id":%d,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`, c.ID))
	for i := range endpoints {
		put(endpointKey(c.Name, i, false), fmt.Sprintf(`{"IP":"10.1.%d.%d","ID":65546,"HostIP":"172.18.0.2"}`, i/250, i%250))
	}
	for _, resource := range wire.Resources {
		put(wire.CanaryKey(resource, c.Name, false), "now")
	}
	put(wire.HeartbeatKey, "now")
}

func endpointKey(clusterName string, i int, cached bool) string {
	return fmt.Sprintf("%s10.1.%d.%d", wire.Prefix(wire.Endpoints, clusterName, cached), i/250, i%250)
}

// TestTakeOver has one of two replicas work, and the other one after it has ended.
func TestTakeOver(t *testing.T) {
	const endpoints = 300
	north, west := mesh.NewCluster(t, "north", 1), mesh.NewCluster(t, "west", 2)
	fill(t, north, endpoints)
	remotes := mesh.NewDirectory(t).Add("north", north.Etcd)
	a := newReplica(t, "west", 2, west.Etcd.URL(), remotes, 0)
	b := newReplica(t, "west", 2, west.Etcd.URL(), remotes, 0)

	a.Start()
	cached := func(c *assert.CollectT) {
		keys, err := west.Etcd.List(t.Context(), wire.CachePrefix(wire.Endpoints, "north"))
		require.NoError(c, err)
		require.Len(c, keys, endpoints)
	}
	require.EventuallyWithT(t, cached, patience, tick)
	require.Eventually(t, a.state.Complete, patience, tick)
	require.True(t, a.leads())
	shown := a.shown(t)
	require.Len(t, shown, 1)
	require.Equal(t, "north", shown[0].Name)
	require.True(t, shown[0].Ready)
	require.EqualValues(t, endpoints, shown[0].NumEndpoints)
	require.Equal(t, &models.RemoteClusterConfig{Required: true, Retrieved: true, ClusterID: 1, SyncCanaries: true}, shown[0].Config)
	require.Equal(t, &models.RemoteClusterSynced{Nodes: true, Endpoints: true, Identities: true, Services: true}, shown[0].Synced)

	// Whatever happens to what is cached from now on.
	resp, err := west.Etcd.Client().Etcd().Get(t.Context(), wire.CacheRoot, clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	changes := west.Etcd.Client().Etcd().Watch(t.Context(), wire.CacheRoot, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))

	b.Start()
	require.Eventually(t, b.state.Complete, patience, tick, "who waits is ready")
	require.False(t, b.leads())
	require.Empty(t, b.shown(t), "it follows no cluster")
	a.Stop()
	require.Eventually(t, b.leads, patience, tick)

	// What is new comes, and is all that comes.
	_, err = north.Etcd.Client().Etcd().Put(t.Context(), endpointKey("north", endpoints, false), `{"IP":"10.1.1.50","ID":65546}`)
	require.NoError(t, err)
	select {
	case change := <-changes:
		require.Len(t, change.Events, 1)
		require.Equal(t, endpointKey("north", endpoints, true), string(change.Events[0].Kv.Key))
	case <-time.After(patience):
		t.Fatal("the new endpoint doesn't come")
	}
}

// TestLeaderCutOff has the leader lose its connection to the local etcd: another one takes
// over, and the first writes nothing any more, though it would have something to write.
func TestLeaderCutOff(t *testing.T) {
	const endpoints = 20
	north, west := mesh.NewCluster(t, "north", 1), mesh.NewCluster(t, "west", 2)
	fill(t, north, endpoints)
	remotes := mesh.NewDirectory(t).Add("north", north.Etcd)
	way, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(way.Close)
	there := strings.TrimPrefix(west.Etcd.URL(), "http://")
	way.Aim(there)
	const ttl = 5 * time.Second
	a := newReplica(t, "west", 2, "http://"+way.Address(), remotes, ttl)
	b := newReplica(t, "west", 2, west.Etcd.URL(), remotes, ttl)
	a.Start()
	require.Eventually(t, a.state.Complete, patience, tick)
	b.Start()

	way.Aim("")
	require.Eventually(t, b.leads, patience, tick)
	value := func() string {
		all, err := west.Etcd.List(t.Context(), endpointKey("north", 0, true))
		require.NoError(t, err)
		return all[endpointKey("north", 0, true)]
	}
	// What A would still write, if it was let: B goes first, and another one is after that.
	_, err = north.Etcd.Client().Etcd().Put(t.Context(), endpointKey("north", 0, false), `{"IP":"10.1.0.0","ID":65547}`)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return strings.Contains(value(), "65547") }, patience, tick)
	way.Aim(there)
	select {
	case <-a.ended:
	case <-time.After(patience):
		t.Fatal("a leader that has lost its lock doesn't end")
	}
	require.False(t, a.leads())
	require.True(t, b.leads())
	require.Contains(t, value(), "65547")
}
