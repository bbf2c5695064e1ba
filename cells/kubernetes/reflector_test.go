// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
)

// endpointFixture is the reflector of CiliumEndpoints before a real Writer,
// applied by hand.
type endpointFixture struct {
	db        *statedb.DB
	writer    *state.Writer
	applier   *applier
	reflector *reflector[[]claim, []claimKey]
}

func newEndpointFixture(t require.TestingT, log *slog.Logger) *endpointFixture {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	metrics := NewMetrics()
	origin := writer.Origin("cluster3", 3, state.SourceLocal)
	f := &endpointFixture{
		db: db, writer: writer, applier: newApplier(writer, metrics),
		reflector: newReflector("CiliumEndpoint", newProblems(log, "CiliumEndpoint", metrics), metrics,
			convertEndpoint, applyClaims(origin, "endpoint/")),
	}
	f.applier.add(f.reflector)
	return f
}

// owners gives, for each address of the table, who has it and who waits.
func (f *endpointFixture) owners() map[string][]string {
	out := map[string][]string{}
	for row := range f.writer.Tables().Endpoints.All(f.db.ReadTxn()) {
		who := []string{row.Owner().Object}
		for _, claim := range row.Waiting() {
			who = append(who, claim.Owner.Object)
		}
		slices.Sort(who)
		out[row.Prefix().Addr().String()] = who
	}
	return out
}

func endpointOf(name string, addresses ...string) *ciliumv2.CiliumEndpoint {
	ep := &ciliumv2.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}}
	ep.Status.Networking = &ciliumv2.EndpointNetworking{}
	for _, a := range addresses {
		ep.Status.Networking.Addressing = append(ep.Status.Networking.Addressing, &ciliumv2.AddressPair{IPV4: a})
	}
	return ep
}

// TestReflectorFollowsItsSource: whatever the events, and wherever the batches
// are cut, the table holds what the source holds.
func TestReflectorFollowsItsSource(t *testing.T) {
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))
	rapid.Check(t, func(t *rapid.T) {
		f := newEndpointFixture(t, log)
		source := map[string][]string{} // endpoint → addresses
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		addresses := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "bad"}), 0, 3, rapid.ID)

		t.Repeat(map[string]func(*rapid.T){
			"upsert": func(t *rapid.T) {
				n, a := name.Draw(t, "name"), addresses.Draw(t, "addresses")
				source[n] = a
				require.NoError(t, f.reflector.Add(endpointOf(n, a...)))
			},
			"delete": func(t *rapid.T) {
				n := name.Draw(t, "name")
				delete(source, n)
				require.NoError(t, f.reflector.Delete(endpointOf(n)))
			},
			"relist": func(t *rapid.T) {
				source = rapid.MapOf(name, addresses).Draw(t, "list")
				var list []any
				for n, a := range source {
					list = append(list, endpointOf(n, a...))
				}
				require.NoError(t, f.reflector.Replace(list, ""))
			},
			"apply": func(t *rapid.T) { f.applier.applyAll() },
		})
		f.applier.applyAll()

		want := map[string][]string{}
		for n, addresses := range source {
			for _, a := range addresses {
				if _, err := netip.ParseAddr(a); err == nil {
					want[a] = append(want[a], "endpoint/foo/"+n)
				}
			}
		}
		for _, who := range want {
			slices.Sort(who)
		}
		require.Equal(t, want, f.owners())
		require.Len(t, f.reflector.memory, len(source))
	})
}

// TestReflectorCoalesces: what waits is bounded by the objects, and a batch is
// one transaction.
func TestReflectorCoalesces(t *testing.T) {
	f := newEndpointFixture(t, hivetest.Logger(t))
	for round := range 100 {
		for n := range 10 {
			require.NoError(t, f.reflector.Add(endpointOf(fmt.Sprint(n), fmt.Sprintf("10.%d.0.%d", round, n))))
		}
	}
	require.Len(t, f.reflector.pending.changes, 10)

	before := f.writer.Tables().Endpoints.Revision(f.db.ReadTxn())
	f.applier.applyAll()
	require.EqualValues(t, 10, f.writer.Tables().Endpoints.Revision(f.db.ReadTxn())-before, "each row was written once")
	require.EqualValues(t, 1, f.applier.metrics.Batches.Get())

	f.applier.applyAll()
	require.EqualValues(t, 1, f.applier.metrics.Batches.Get(), "nothing pending, no transaction")
}

// TestRowStaysWhileItsAddressMoves: readers never see the address gone, neither
// when it moves within a batch nor when it moves in a relist.
func TestRowStaysWhileItsAddressMoves(t *testing.T) {
	for _, how := range []string{"events", "relist"} {
		t.Run(how, func(t *testing.T) {
			f := newEndpointFixture(t, hivetest.Logger(t))
			require.NoError(t, f.reflector.Add(endpointOf("old", "10.0.0.1")))
			f.applier.applyAll()

			wtxn := f.db.WriteTxn(f.writer.Tables().Endpoints)
			changes, err := f.writer.Tables().Endpoints.Changes(wtxn)
			wtxn.Commit()
			require.NoError(t, err)

			if how == "relist" {
				require.NoError(t, f.reflector.Replace([]any{endpointOf("new", "10.0.0.1")}, ""))
			} else {
				require.NoError(t, f.reflector.Add(endpointOf("new", "10.0.0.1")))
				require.NoError(t, f.reflector.Delete(endpointOf("old")))
			}
			f.applier.applyAll()
			seen, _ := changes.Next(f.db.ReadTxn())
			for change := range seen {
				require.False(t, change.Deleted)
			}
			require.Equal(t, map[string][]string{"10.0.0.1": {"endpoint/foo/new"}}, f.owners())
		})
	}
}

func TestReflectorRefusesWhatIsNoObject(t *testing.T) {
	f := newEndpointFixture(t, hivetest.Logger(t))
	require.Error(t, f.reflector.Add("text"))
	require.Error(t, f.reflector.Delete(7))
	require.Error(t, f.reflector.Replace([]any{struct{}{}}, ""))
	require.NoError(t, f.reflector.Resync())

	// An object of another kind is a bug of the source, reported as a problem.
	require.NoError(t, f.reflector.Add(&ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}}))
	f.applier.applyAll()
	require.Empty(t, f.owners())
	require.EqualValues(t, 1, f.applier.metrics.Problems.WithLabelValues("CiliumEndpoint", string(problemType)).Get())
}

func TestWithdrawn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Sizes on both sides of smallObject.
		keys := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) claimKey {
			return claimKey{pod: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "pod"),
				prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "ip") % 12}), 32)}
		}), 0, 20)
		old, now := keys.Draw(t, "old"), keys.Draw(t, "now")
		want := map[claimKey]bool{}
		for _, k := range old {
			want[k] = true
		}
		for _, k := range now {
			delete(want, k)
		}
		got := map[claimKey]bool{}
		withdrawn(old, now, func(k claimKey) { got[k] = true })
		require.Equal(t, want, got)
	})
}

func TestProblemsAreLoggedAtALimitedRate(t *testing.T) {
	var lines countingHandler
	metrics := NewMetrics()
	p := newProblems(slog.New(&lines), "CiliumIdentity", metrics)
	for range 1000 {
		p.of("x")(problemName, errNoLabels)
	}
	require.EqualValues(t, 1000, metrics.Problems.WithLabelValues("CiliumIdentity", string(problemName)).Get())
	require.GreaterOrEqual(t, lines.n, logBurst)
	require.Less(t, lines.n, 1000)
}

// BenchmarkInitialList takes in a list of 10,000 endpoints, from objects to
// committed rows.
func BenchmarkInitialList(b *testing.B) {
	log := hivetest.Logger(b)
	objects := make([]any, 10_000)
	for i := range objects {
		objects[i] = endpointOf(fmt.Sprint("pod-", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	b.ReportAllocs()
	for b.Loop() {
		f := newEndpointFixture(b, log)
		if err := f.reflector.Replace(slices.Clone(objects), ""); err != nil {
			b.Fatal(err)
		}
		f.applier.applyAll()
	}
	b.ReportMetric(float64(len(objects)*b.N)/b.Elapsed().Seconds(), "objects/s")
}

// countingHandler counts log lines.
type countingHandler struct{ n int }

func (h *countingHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (h *countingHandler) Handle(context.Context, slog.Record) error { h.n++; return nil }
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler        { return h }
func (h *countingHandler) WithGroup(string) slog.Handler             { return h }
