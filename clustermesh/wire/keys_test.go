// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"path"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/kvstoremesh/reflector"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/identity/cache"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		resource                  Resource
		state, cached             string
		stateCanary, cachedCanary string
	}{
		{
			Endpoints, "cilium/state/ip/v1/default/", "cilium/cache/ip/v1/east/",
			"cilium/synced/east/cilium/state/ip/v1", "cilium/synced/east/cilium/cache/ip/v1",
		}, {
			Identities, "cilium/state/identities/v1/id/", "cilium/cache/identities/v1/east/id/",
			"cilium/synced/east/cilium/state/identities/v1", "cilium/synced/east/cilium/cache/identities/v1",
		}, {
			Nodes, "cilium/state/nodes/v1/east/", "cilium/cache/nodes/v1/east/",
			"cilium/synced/east/cilium/state/nodes/v1", "cilium/synced/east/cilium/cache/nodes/v1",
		}, {
			Services, "cilium/state/services/v1/east/", "cilium/cache/services/v1/east/",
			"cilium/synced/east/cilium/state/services/v1", "cilium/synced/east/cilium/cache/services/v1",
		}, {
			ServiceExports, "cilium/state/serviceexports/v1/east/", "cilium/cache/serviceexports/v1/east/",
			"cilium/synced/east/cilium/state/serviceexports/v1", "cilium/synced/east/cilium/cache/serviceexports/v1",
		}, {
			EndpointSlices, "cilium/state/endpointslices/v1/east/", "cilium/cache/endpointslices/v1/east/",
			"cilium/synced/east/cilium/state/endpointslices/v1", "cilium/synced/east/cilium/cache/endpointslices/v1",
		},
	} {
		t.Run(string(tc.resource), func(t *testing.T) {
			require.Equal(t, tc.state, StatePrefix(tc.resource, "east"))
			require.Equal(t, tc.state, Prefix(tc.resource, "east", false))
			require.Equal(t, tc.cached, CachePrefix(tc.resource, "east"))
			require.Equal(t, tc.cached, Prefix(tc.resource, "east", true))
			require.Equal(t, tc.stateCanary, CanaryKey(tc.resource, "east", false))
			require.Equal(t, tc.cachedCanary, CanaryKey(tc.resource, "east", true))
			require.True(t, strings.HasPrefix(tc.stateCanary, SyncedPrefix("east")))
		})
	}
}

func TestKeysOfUpstream(t *testing.T) {
	require.Equal(t, kvstore.BaseKeyPrefix+"/", BasePrefix)
	require.Equal(t, kvstore.StatePrefix+"/", StateRoot)
	require.Equal(t, kvstore.CachePrefix+"/", CacheRoot)
	require.Equal(t, kvstore.SyncedPrefix+"/", SyncedRoot)
	require.Equal(t, kvstore.ClusterConfigPrefix+"/", ClusterConfigPrefix)
	require.Equal(t, path.Join(kvstore.ClusterConfigPrefix, "east"), ClusterConfigKey("east"))
	require.Equal(t, kvstore.HeartbeatPath, HeartbeatKey)
	require.Equal(t, kvstore.HeartbeatWriteInterval, HeartbeatInterval)

	// What is looked up on demand has the layout of what is pushed, one level down.
	require.Equal(t, StateRoot+"ondemand/"+strings.TrimPrefix(
		path.Join(ipcache.IPIdentitiesPath, ipcache.DefaultAddressSpace), StateRoot)+"/", OnDemandEndpointPrefix)
	require.Equal(t, StateRoot+"ondemand/"+strings.TrimPrefix(
		path.Join(cache.IdentitiesPath, "id"), StateRoot)+"/", OnDemandIdentityPrefix)
}

// TestKeysOfUpstreamKVStoreMesh asks upstream's own reflectors where they read,
// where they write, and which canary they wait for.
func TestKeysOfUpstreamKVStoreMesh(t *testing.T) {
	names := map[Resource]reflector.Name{
		Endpoints: reflector.Endpoints, Identities: reflector.Identities, Nodes: reflector.Nodes,
		Services: reflector.Services, ServiceExports: reflector.ServiceExports,
	}
	seen := map[reflector.Name]bool{}
	h := hive.New(reflector.Cell, cell.Invoke(func(in struct {
		cell.In
		Factories []reflector.Factory `group:"kvstoremesh-reflectors"`
	}) {
		for _, factory := range in.Factories {
			for _, cached := range []bool{false, true} {
				var rec recorder
				r := factory(nil, &rec, "east", func() {})
				seen[r.Name()] = true
				on := true
				r.Register(&rec, nil, cmtypes.CiliumClusterConfig{Capabilities: cmtypes.CiliumClusterConfigCapabilities{
					Cached: cached, ServiceExportsEnabled: &on,
				}})
				for resource, name := range names {
					if name == r.Name() {
						require.Equal(t, rec.written, CachePrefix(resource, "east"))
						require.Equal(t, rec.watched, Prefix(resource, "east", cached))
						require.Equal(t, rec.canary, CanaryKey(resource, "east", cached))
					}
				}
			}
		}
	}))
	require.NoError(t, h.Populate(hivetest.Logger(t)))
	for resource, name := range names {
		require.True(t, seen[name], "upstream has no reflector for %s", resource)
	}
	require.Len(t, seen, len(names), "upstream reflects more than we do")
}

// recorder is the factory of the stores of one reflector, and notes where they are.
type recorder struct {
	store.Factory
	store.SyncStore
	written, watched, canary string
}

func (r *recorder) NewSyncStore(_ string, _ store.SyncStoreBackend, prefix string, _ ...store.WSSOpt) store.SyncStore {
	r.written = prefix + "/"
	return r
}

func (r *recorder) NewWatchStore(string, store.KeyCreator, store.Observer, ...store.RWSOpt) store.WatchStore {
	return recorderWatch{r}
}

func (r *recorder) Register(prefix string, watch store.WSMFunc) {
	r.canary = path.Join(kvstore.SyncedPrefix, "east", prefix)
	watch(context.Background())
}

func (r *recorder) Run(context.Context) {}

// recorderWatch is apart from recorder, whose Run has another meaning.
type recorderWatch struct{ *recorder }

func (r recorderWatch) Watch(_ context.Context, _ store.WatchStoreBackend, prefix string) {
	r.watched = prefix + "/"
}
func (r recorderWatch) NumEntries() uint64 { return 0 }
func (r recorderWatch) Synced() bool       { return false }
func (r recorderWatch) Drain()             {}
