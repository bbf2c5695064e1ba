// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/bpf"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/datapath/fake/types"
	listener "github.com/cilium/cilium/pkg/datapath/ipcache"
	"github.com/cilium/cilium/pkg/datapath/tunnel"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/identity"
	theirs "github.com/cilium/cilium/pkg/ipcache"
	ipcachetypes "github.com/cilium/cilium/pkg/ipcache/types"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/cilium/pkg/kpr"
	"github.com/cilium/cilium/pkg/labels"
	"github.com/cilium/cilium/pkg/loadbalancer"
	mapsipcache "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/node/manager"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/cilium/pkg/source"
	testidentity "github.com/cilium/cilium/pkg/testutils/identity"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// upstreamAgent is what in upstream's agent leads from nodes and endpoints to the
// map: node manager, ipcache and the listener, with the map replaced.
type upstreamAgent struct {
	cache   *theirs.IPCache
	manager manager.NodeManager
	mapped  *recordedMap
}

// recordedMap keeps what upstream's listener writes, in our types.
type recordedMap struct {
	mu      sync.Mutex
	entries map[Key]Value
}

func (m *recordedMap) Update(key bpf.MapKey, value bpf.MapValue) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var entry Entry
	copy(bytesOf(&entry.Key), bytesOf(key.(*mapsipcache.Key)))
	copy(bytesOf(&entry.Value), bytesOf(value.(*mapsipcache.RemoteEndpointInfo)))
	m.entries[entry.Key] = entry.Value
	return nil
}

func (m *recordedMap) Delete(key bpf.MapKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ours Key
	copy(bytesOf(&ours), bytesOf(key.(*mapsipcache.Key)))
	delete(m.entries, ours)
	return nil
}

func (m *recordedMap) snapshot() map[Key]Value {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.entries)
}

func newUpstreamAgent(t *testing.T, ipv4, ipv6 bool, underlay string) *upstreamAgent {
	// Upstream keeps these in globals.
	before := *option.Config
	option.Config.EnableIPv4, option.Config.EnableIPv6, option.Config.ClusterName = ipv4, ipv6, "here"
	node.SetTestLocalNodeStore()
	t.Cleanup(func() {
		node.UnsetTestLocalNodeStore()
		option.Config.EnableIPv4, option.Config.EnableIPv6 = before.EnableIPv4, before.EnableIPv6
		option.Config.ClusterName = before.ClusterName
	})

	log := hivetest.Logger(t)
	var tunnelConfig tunnel.Config
	h := hive.New(
		tunnel.Cell,
		cell.Provide(
			func() kpr.KPRConfig { return kpr.KPRConfig{} },
			func() loadbalancer.Config { return loadbalancer.Config{} },
			func() *option.DaemonConfig { return &option.DaemonConfig{RoutingMode: option.RoutingModeTunnel} },
		),
		cell.Invoke(func(c tunnel.Config) { tunnelConfig = c }),
	)
	h.Viper().Set(flagUnderlay, underlay)
	require.NoError(t, h.Populate(log))
	require.EqualValues(t, underlay, tunnelConfig.UnderlayProtocol())

	cacheSynced := make(synced.CacheStatus)
	close(cacheSynced)
	agent := &upstreamAgent{mapped: &recordedMap{entries: map[Key]Value{}}}
	agent.cache = theirs.NewIPCache(&theirs.Configuration{
		Context:           t.Context(),
		Logger:            log,
		IdentityAllocator: testidentity.NewMockIdentityAllocator(nil),
		IdentityUpdater:   &testidentity.IdentityAllocatorOwnerMock{},
		CacheStatus:       cacheSynced,
	})
	t.Cleanup(func() { require.NoError(t, agent.cache.Shutdown()) })
	agent.cache.AddListener(listener.NewListener(agent.mapped, nil, tunnelConfig, log))

	health, _ := cell.NewSimpleHealth()
	var err error
	agent.manager, err = manager.New(log, option.Config, tunnelConfig, agent.cache, &types.IPSet{}, nil, manager.NewNodeMetrics(),
		health, nil, nil, nil, types.WireguardConfig{}, node.NewTestLocalNodeStore(node.LocalNode{}))
	require.NoError(t, err)
	return agent
}

// TestEntriesAreUpstreams gives the same nodes and endpoints to upstream's agent
// and to us, and expects the same entries, byte for byte.
func TestEntriesAreUpstreams(t *testing.T) {
	nodes := []*wire.Node{dualStackNode("there"), dualStackNode("here")}
	for _, n := range nodes {
		n.NodeIdentity, n.Source = identityRemoteNode, string(source.ClusterMesh)
	}
	// The own cluster's node has addresses of its own.
	own := nodes[1]
	own.Addresses = []wire.NodeAddress{
		{Type: addressInternal, IP: addr("192.168.9.1")},
		{Type: addressCiliumInternal, IP: addr("10.9.1.1")},
		{Type: addressCiliumInternal, IP: addr("fd00:9::1")},
	}
	own.PodCIDRs4 = []netip.Prefix{netip.MustParsePrefix("10.9.1.0/24")}
	own.PodCIDRs6 = []netip.Prefix{netip.MustParsePrefix("fd00:9::/64")}
	own.HealthIP4, own.HealthIP6 = addr("10.9.1.2"), addr("fd00:9::2")
	own.IngressIP4, own.IngressIP6 = netip.Addr{}, netip.Addr{}

	endpoints := []wire.Endpoint{
		{Prefix: netip.MustParsePrefix("10.0.1.7/32"), HostIP: addr("192.168.0.1"), Identity: 70000},
		{Prefix: netip.MustParsePrefix("10.0.1.8/32"), HostIP: addr("192.168.0.1"), Identity: 70001, EncryptionKey: 3},
		{Prefix: netip.MustParsePrefix("fd00:1::7/128"), HostIP: addr("192.168.0.1"), Identity: 70000},
		{Prefix: netip.MustParsePrefix("fd00:1::8/128"), HostIP: addr("fd01::1"), Identity: 70000},
		{Prefix: netip.MustParsePrefix("10.0.1.9/32"), Identity: 70002},
	}

	for _, test := range []struct {
		name       string
		ipv4, ipv6 bool
		underlay   string
	}{
		{"dual stack", true, true, "ipv4"},
		{"dual stack over IPv6", true, true, "ipv6"},
		{"IPv4", true, false, "ipv4"},
		{"IPv6 over IPv6", false, true, "ipv6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			agent := newUpstreamAgent(t, test.ipv4, test.ipv6, test.underlay)
			ours := rules{clusterName: "here", ipv4: test.ipv4, ipv6: test.ipv6, underlayIPv6: test.underlay == "ipv6"}
			want := map[Key]Value{}

			for _, n := range nodes {
				agent.manager.NodeUpdated(*wire.NodeToUpstream(n))
				for _, entry := range ours.node(n) {
					want[entry.Key] = entry.Value
				}
			}
			for _, ep := range endpoints {
				_, err := agent.cache.Upsert(ep.Prefix.Addr().String(), ep.HostIP.AsSlice(), ep.EncryptionKey, nil,
					theirs.Identity{ID: identity.NumericIdentity(ep.Identity), Source: source.ClusterMesh})
				require.NoError(t, err)
				entry, ok := ours.endpoint(state.NewEndpoint(state.Claim{Origin: remote, Endpoint: ep}))
				require.True(t, ok)
				want[entry.Key] = entry.Value
			}
			for _, entry := range ours.outside() {
				// As daemon/cmd/hostips-sync.go does it.
				prefix := cmtypes.NewLocalPrefixCluster(entry.Prefix())
				world := labels.Labels{}
				world.AddWorldLabel(entry.Prefix().Addr())
				agent.cache.OverrideIdentity(prefix, world, source.Local, ipcachetypes.NewResourceID(ipcachetypes.ResourceKindDaemon, "", "reserved"))
				want[entry.Key] = entry.Value
			}

			// Upstream resolves labels in the background.
			require.Eventually(t, func() bool { return len(agent.mapped.snapshot()) >= len(want) }, patience, 10*time.Millisecond)
			require.Equal(t, text(want), text(agent.mapped.snapshot()))
		})
	}
}

func text(entries map[Key]Value) map[string]string {
	out := map[string]string{}
	for key, value := range entries {
		out[key.String()] = value.String()
	}
	return out
}
