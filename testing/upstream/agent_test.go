// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh"
	"github.com/cilium/cilium/pkg/clustermesh/common"
	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/clustermesh/operator"
	servicestore "github.com/cilium/cilium/pkg/clustermesh/store"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/clustermesh/wait"
	"github.com/cilium/cilium/pkg/dial"
	"github.com/cilium/cilium/pkg/identity"
	identitycache "github.com/cilium/cilium/pkg/identity/cache"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/labels"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// theirReader is upstream's cluster mesh as it runs in cilium-agent, and for
// service exports as it runs in cilium-operator. Where the rest of an agent
// would be, it records what that is told.
type theirReader struct {
	hive *mesh.Hive
	mesh *clustermesh.ClusterMesh
	// exports is the operator's part.
	exports operator.ClusterMesh

	mu       sync.Mutex
	entries  content
	vanished []string
}

// newTheirReader makes upstream's agent of a cluster.
func newTheirReader(t testing.TB, c *mesh.Cluster, remotes *mesh.Directory) *theirReader {
	r := &theirReader{}
	own := mesh.NewObjects(t)
	flags := c.Flags(mesh.Flags{"clustermesh-config": remotes.Path, "clustermesh-enable-mcs-api": "true"})
	r.hive = mesh.NewHive(t, flags,
		cell.Config(wire.DefaultClusterInfo),
		store.Cell,
		cell.Provide(
			func() kvstore.Config {
				return kvstore.Config{
					KVStoreLeaseTTL:                   15 * time.Minute,
					KVstoreMaxConsecutiveQuorumErrors: 2,
					KVStoreOpt:                        map[string]string{kvstore.EtcdRateLimitOption: "10000"},
				}
			},
			// Addresses are what they say.
			func() dial.Resolver { return nil },
		),
		operator.Cell,
		cell.Invoke(r.followExports),

		cell.Provide(func(lc cell.Lifecycle, log *slog.Logger) clustermesh.RemoteIdentityWatcher {
			return newIdentityWatcher(lc, log, own, r)
		}),
		cell.Invoke(r.followCluster),
	)
	return r
}

func (r *theirReader) restart() {
	r.hive.Stop()
	r.entries, r.vanished = content{}, nil
	r.hive.Start()
}

// newIdentityWatcher is upstream's allocator of identities, which reads those of
// the local cluster from Kubernetes.
func newIdentityWatcher(lc cell.Lifecycle, log *slog.Logger, own *mesh.Objects, r *theirReader) clustermesh.RemoteIdentityWatcher {
	allocator := identitycache.NewCachingIdentityAllocator(log, r, identitycache.NewTestAllocatorConfig())
	lc.Append(cell.Hook{
		OnStart: func(ctx cell.HookContext) error {
			<-allocator.InitIdentityAllocator(own, nil)
			// Close mustn't overtake the first list.
			return allocator.WaitForInitialGlobalIdentities(ctx)
		},
		OnStop: func(cell.HookContext) error {
			allocator.Close()
			return nil
		},
	})
	return allocator
}

// followExports records what the operator is told.
func (r *theirReader) followExports(mesh operator.ClusterMesh) {
	r.exports = mesh
	mesh.RegisterClusterServiceExportUpdateHook(func(export *mcsapitypes.MCSAPIServiceSpec) {
		r.update("export", export.Namespace+"/"+export.Name, export)
	})
	mesh.RegisterClusterServiceExportDeleteHook(func(export *mcsapitypes.MCSAPIServiceSpec) {
		r.delete("export", export.Namespace+"/"+export.Name)
	})
}

// agentParams is what the mesh of an agent shares with that of an operator here.
type agentParams struct {
	cell.In

	Logger        *slog.Logger
	Lifecycle     cell.Lifecycle
	Config        common.Config
	Timeout       wait.TimeoutConfig
	ClusterInfo   cmtypes.ClusterInfo
	ClientFactory common.RemoteClientFactoryFn
	StoreFactory  store.Factory
	Metrics       common.Metrics
	Identities    clustermesh.RemoteIdentityWatcher
}

// noMetrics are the metrics of which features are in use.
type noMetrics struct{}

func (noMetrics) AddClusterMeshConfig(string, string) {}
func (noMetrics) DelClusterMeshConfig(string, string) {}

// followCluster records what the agent is told.
func (r *theirReader) followCluster(p agentParams) {
	r.mesh = clustermesh.NewClusterMesh(p.Lifecycle, clustermesh.Configuration{
		Config:                       p.Config,
		TimeoutConfig:                p.Timeout,
		ClusterInfo:                  p.ClusterInfo,
		RemoteClientFactory:          p.ClientFactory,
		ServiceMerger:                (*serviceRecorder)(r),
		NodeObserver:                 (*nodeRecorder)(r),
		RemoteIdentityWatcher:        p.Identities,
		IPCache:                      (*addressRecorder)(r),
		ClusterSizeDependantInterval: func(interval time.Duration) time.Duration { return interval },
		ClusterIDsManager:            clustermesh.NewClusterMeshUsedIDs(p.ClusterInfo.ID),
		Metrics:                      clustermesh.NewMetrics(),
		CommonMetrics:                p.Metrics,
		StoreFactory:                 p.StoreFactory,
		FeatureMetrics:               noMetrics{},
		Logger:                       p.Logger,
	})
}

func (r *theirReader) update(kind, key string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries.add(kind, key, value)
}

func (r *theirReader) delete(kind, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, kind+" "+key)
	r.vanished = append(r.vanished, kind+" "+key)
}

func (r *theirReader) content() content {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.entries)
}

func (r *theirReader) gone() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.vanished))
}

// problem asks whether everything was synced once. Upstream's status would tell
// whether it is now, but must not be asked while it connects: that is a race.
func (r *theirReader) problem() error {
	if r.mesh.NumReadyClusters() != 1 {
		return fmt.Errorf("cluster %q isn't connected", north)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	return errors.Join(
		r.mesh.NodesSynced(ctx), r.mesh.ServicesSynced(ctx), r.mesh.IPIdentitiesSynced(ctx),
		r.exports.ServiceExportsSynced(ctx))
}

// nodeRecorder is the node manager.
type nodeRecorder theirReader

func (n *nodeRecorder) NodeUpdated(node nodetypes.Node) {
	r := (*theirReader)(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	if node.Source != source.ClusterMesh {
		r.entries.add("node", node.Name, "its source is "+node.Source)
		return
	}
	r.entries.addNode(node)
}

func (n *nodeRecorder) NodeDeleted(node nodetypes.Node) {
	(*theirReader)(n).delete("node", node.Cluster+"/"+node.Name)
}

// serviceRecorder merges services.
type serviceRecorder theirReader

func (s *serviceRecorder) MergeExternalServiceUpdate(service *servicestore.ClusterService) {
	(*theirReader)(s).update("service", service.Namespace+"/"+service.Name, service)
}

func (s *serviceRecorder) MergeExternalServiceDelete(service *servicestore.ClusterService) {
	(*theirReader)(s).delete("service", service.Namespace+"/"+service.Name)
}

// addressRecorder is the ipcache.
type addressRecorder theirReader

func (a *addressRecorder) Upsert(ip string, host net.IP, key uint8, meta *ipcache.K8sMetadata, id ipcache.Identity) (bool, error) {
	ep := endpoint{Key: key, Identity: id.ID.Uint32()}
	if addr, ok := netip.AddrFromSlice(host); ok {
		ep.Host = addr.Unmap()
	}
	if meta != nil {
		ep.Namespace, ep.Pod = meta.Namespace, meta.PodName
	}
	(*theirReader)(a).update("endpoint", ip, ep)
	return false, nil
}

func (a *addressRecorder) Delete(ip string, _ source.Source) bool {
	(*theirReader)(a).delete("endpoint", ip)
	return false
}

// UpdateIdentities is called by the allocator of identities.
func (r *theirReader) UpdateIdentities(added, deleted identity.IdentityMap) <-chan struct{} {
	for id := range deleted {
		r.delete("identity", strconv.FormatUint(uint64(id), 10))
	}
	for id, labelArray := range added {
		r.update("identity", strconv.FormatUint(uint64(id), 10), sortedLabels(labelArray))
	}
	done := make(chan struct{})
	close(done)
	return done
}

// GetNodeSuffix is called by the allocator of identities.
func (r *theirReader) GetNodeSuffix() string { return "192.168.2.1" }

// sortedLabels is the form that labels have on the wire.
func sortedLabels(array labels.LabelArray) string { return string(array.Labels().SortedList()) }
