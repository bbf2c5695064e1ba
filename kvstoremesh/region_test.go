// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// regionConfig is the config of a source in a region.
func regionConfig(region string, cached bool) string {
	return fmt.Sprintf(`{"id":1,"capabilities":{"syncedCanaries":true,"cached":%t,"maxConnectedClusters":255},"region":%q}`, cached, region)
}

// endpointAt is an endpoint as exporters write it.
func endpointAt(t testing.TB, address string, scope wire.Scope) string {
	value, err := wire.MarshalEndpoint(&wire.Endpoint{Prefix: state.PrefixOf(netip.MustParseAddr(address)),
		Identity: 65537, Namespace: "ns", Pod: "pod", Scope: scope})
	require.NoError(t, err)
	return string(value)
}

func inRegion(region string) func(*Config) { return func(c *Config) { c.ClusterRegion = region } }

// endpointsOf is the row's state of endpoints, and listsOf how often it says that a
// resource was listed.
func (f *fixture) endpointsOf() state.ResourceState {
	row, _, ok := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
	if !ok {
		return state.ResourceState{}
	}
	return row.Resources[wire.Endpoints]
}

func (f *fixture) listsOf(resource wire.Resource) uint64 {
	row, _, ok := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
	require.True(f.t, ok)
	return row.Resources[resource].Lists
}

func (f *fixture) eventuallyCounted(taken, skipped int) {
	f.t.Helper()
	require.EventuallyWithT(f.t, func(c *assert.CollectT) {
		have := f.endpointsOf()
		have.Lists = 0 // as many as it took
		require.Equal(c, state.ResourceState{Enabled: true, Synced: true, Entries: taken, Skipped: skipped}, have)
	}, patience, tick)
}

// TestRegions follows a source in another region, from either layout: its regional
// endpoints aren't taken, whatever becomes of them, and are counted. When it moves to
// our region they are, and only endpoints are read again for it.
func TestRegions(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached=%t", cached), func(t *testing.T) {
			f := newFixture(t, inRegion("us"))
			prefix := wire.Prefix(wire.Endpoints, "c", cached)
			global := func(address string) string { return endpointAt(t, address, wire.ScopeGlobal) }
			regional := func(address string) string { return endpointAt(t, address, wire.ScopeRegional) }
			f.fill(cached, true)
			f.put(prefix+"10.0.0.1", global("10.0.0.1"), prefix+"10.0.0.2", regional("10.0.0.2"), prefix+"fd00::1", regional("fd00::1"),
				prefix+"fd00::2", global("fd00::2"), prefix+"10.0.0.3", ` {"IP":"10.0.0.3", "syncscope": "regional"}`,
				prefix+"10.0.0.4", `{"IP":"10.0.0.4","SyncScope":"zonal"}`, prefix+"10.0.0.5", "nonsense")
			h := newCluster(f.mesh, "c")
			stop := f.run(h, regionConfig("eu", cached))
			want := map[string]string{"10.0.0.1": global("10.0.0.1"), "fd00::2": global("fd00::2"),
				"10.0.0.4": `{"IP":"10.0.0.4","SyncScope":"zonal"}`, "10.0.0.5": "nonsense"}
			f.eventually("cilium/cache/ip/v1/c/", want)
			f.eventuallyCounted(4, 3)

			// What becomes regional goes, what becomes global comes; the rest is as ever.
			f.put(prefix+"10.0.0.1", regional("10.0.0.1"), prefix+"10.0.0.2", global("10.0.0.2"), prefix+"fd00::3", regional("fd00::3"))
			for _, gone := range []string{"10.0.0.3", "10.0.0.4"} {
				_, err := f.source.Etcd().Delete(t.Context(), prefix+gone)
				require.NoError(t, err)
			}
			want = map[string]string{"10.0.0.2": global("10.0.0.2"), "fd00::2": global("fd00::2"), "10.0.0.5": "nonsense"}
			f.eventually("cilium/cache/ip/v1/c/", want)
			f.eventuallyCounted(3, 3)

			// Another region that isn't ours makes no difference; nor does a reconnect.
			stop()
			stop = f.run(h, regionConfig("ap", cached))
			f.put(prefix+"fd00::4", regional("fd00::4"))
			f.eventuallyCounted(3, 4)
			for _, r := range h.replicas[:5] {
				require.LessOrEqual(t, f.listsOf(r.resource), uint64(1), r.resource)
			}

			stop()
			stop = f.run(h, regionConfig("us", cached))
			want["10.0.0.1"] = regional("10.0.0.1")
			for _, address := range []string{"fd00::1", "fd00::3", "fd00::4"} {
				want[address] = regional(address)
			}
			f.eventually("cilium/cache/ip/v1/c/", want)
			f.eventuallyCounted(7, 0)

			stop()
			stop = f.run(h, regionConfig("eu", cached))
			f.eventually("cilium/cache/ip/v1/c/", map[string]string{"10.0.0.2": global("10.0.0.2"), "fd00::2": global("fd00::2"), "10.0.0.5": "nonsense"})
			f.eventuallyCounted(3, 4)

			stop()
			stop = f.run(h, regionConfig("", cached))
			f.eventually("cilium/cache/ip/v1/c/", want)
			f.eventuallyCounted(7, 0)
			stop()
			for _, r := range h.replicas[:4] {
				lists := uint64(1)
				if r.resource == wire.Endpoints {
					lists = 4
				}
				require.Equal(t, lists, f.listsOf(r.resource), r.resource)
			}
		})
	}
}

// TestMissingRegionIsSaidOnce: of a source, by whoever has one.
func TestMissingRegionIsSaidOnce(t *testing.T) {
	for ours, times := range map[string]int{"": 0, "us": 1} {
		var out bytes.Buffer
		f := &fixture{t: t, log: slog.New(slog.NewTextHandler(&out, nil))}
		_, f.source = startEtcd(t)
		f.server, f.local = startEtcd(t)
		f.startMesh(inRegion(ours))
		f.fill(false, true)
		h := newCluster(f.mesh, "c")
		for range 3 { // connects
			stop := f.run(h, regionConfig("", false))
			f.eventuallyCounted(1, 0)
			stop()
		}
		f.stop()
		require.Equal(t, times, strings.Count(out.String(), "names no region"), out.String())
	}
}

// TestRegionalKeysTakeNoRoom has more regional endpoints than a cluster may have keys.
func TestRegionalKeysTakeNoRoom(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ClusterRegion, c.MaxKeysPerCluster = "us", 4 })
	for i := range 10 {
		address := fmt.Sprintf("10.0.0.%d", i)
		f.put("cilium/state/ip/v1/default/"+address, endpointAt(t, address, wire.ScopeRegional))
	}
	f.put("cilium/state/nodes/v1/c/n1", "x", "cilium/state/nodes/v1/c/n2", "x")
	for _, r := range wire.Resources {
		f.put(wire.CanaryKey(r, "c", false), "now")
	}
	f.run(newCluster(f.mesh, "c"), regionConfig("eu", false))
	f.eventuallyCounted(0, 10)
	f.put("cilium/state/ip/v1/default/10.0.0.0", endpointAt(t, "10.0.0.0", wire.ScopeGlobal))
	f.eventuallyCounted(1, 9)
	row, _, ok := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
	require.True(t, ok)
	require.Empty(t, row.Refused)
}

// TestRegionsAtRandom changes endpoints, their scopes, the source's region and, by a
// restart, ours, at random and in the midst of each other's effects. What comes out is
// what the rules say, and what a KVStoreMesh that never knew anything else has.
func TestRegionsAtRandom(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			regions := []string{"", "eu", "us"}
			region := func() string { return regions[rng.IntN(len(regions))] }
			source, ours := region(), region()
			f := newFixture(t, inRegion(ours))
			f.fill(false, true)
			_, err := f.source.Etcd().Delete(t.Context(), "cilium/state/ip/v1/default/10.0.0.1")
			require.NoError(t, err)

			scopes := map[string]wire.Scope{} // the source's endpoints
			taken := func() map[string]string {
				out := map[string]string{}
				for address, scope := range scopes {
					if filter.Crosses(scope, source, ours) {
						out[address] = endpointAt(t, address, scope)
					}
				}
				return out
			}
			h := newCluster(f.mesh, "c")
			stop := f.run(h, regionConfig(source, false))
			for range 60 {
				switch n := rng.IntN(20); {
				case n < 12:
					address := []string{"10.0.0.%d", "fd00::%d"}[rng.IntN(2)]
					address = fmt.Sprintf(address, 1+rng.IntN(9))
					scopes[address] = wire.Scope(rng.IntN(2))
					f.put("cilium/state/ip/v1/default/"+address, endpointAt(t, address, scopes[address]))
				case n < 15:
					if there := slices.Sorted(maps.Keys(scopes)); len(there) > 0 {
						address := there[rng.IntN(len(there))]
						delete(scopes, address)
						_, err := f.source.Etcd().Delete(t.Context(), "cilium/state/ip/v1/default/"+address)
						require.NoError(t, err)
					}
				case n < 18:
					stop()
					source = region()
					stop = f.run(h, regionConfig(source, false))
				default:
					stop()
					f.stop()
					ours = region()
					f.startMesh(inRegion(ours))
					h = newCluster(f.mesh, "c")
					stop = f.run(h, regionConfig(source, false))
				}
				if rng.IntN(4) == 0 { // else the next change meets the effects of this one
					f.eventually("cilium/cache/ip/v1/c/", taken())
					f.eventuallyCounted(len(taken()), len(scopes)-len(taken()))
				}
			}
			f.eventually("cilium/cache/ip/v1/c/", taken())
			f.eventuallyCounted(len(taken()), len(scopes)-len(taken()))
			reached := f.content(t, wire.CacheRoot)
			stop()
			f.stop()

			f.server, f.local = startEtcd(t)
			f.startMesh(inRegion(ours))
			f.run(newCluster(f.mesh, "c"), regionConfig(source, false))
			f.eventually(wire.CacheRoot, reached)
			f.eventuallyCounted(len(taken()), len(scopes)-len(taken()))
		})
	}
}

// BenchmarkSkipped is the set of a cluster whose 2,000 endpoints are regional to four
// fifths: what each costs to note, and in memory.
func BenchmarkSkipped(b *testing.B) {
	const keys = 1600
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
	}
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	began := time.Now()
	passes := 0
	for b.Loop() {
		passes++
		s := newSkipped()
		s.beginPass()
		for _, name := range names {
			s.set(name, true)
		}
		s.endPass()
	}
	b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(passes*keys), "ns/key")
	const sets = 100
	var all [sets]*skipped
	before := memory()
	for i := range all {
		all[i] = newSkipped()
		for _, name := range names {
			all[i].set(name, true)
		}
	}
	b.ReportMetric(float64(memory()-before)/(sets*keys), "B/key")
	runtime.KeepAlive(all)
}
