// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

func TestHostileAnswers(t *testing.T) {
	web, labels := endpointAt(podAddr, webID), identityOf("red", webID)
	foreign := endpointAt(podAddr, blueWebID)
	wide := web
	wide.Prefix = netip.MustParsePrefix("10.2.0.0/24")
	for name, answer := range map[string]Answer{
		"another address":                     {Endpoint: new(endpointAt(otherAddr, webID)), Identities: []wire.Identity{labels}},
		"a prefix":                            {Endpoint: &wide, Identities: []wire.Identity{labels}},
		"another cluster's identity":          {Endpoint: &foreign, Identities: []wire.Identity{identityOf("red", blueWebID)}},
		"another cluster's identity and name": {Endpoint: &foreign, Identities: []wire.Identity{identityOf("blue", blueWebID)}},
		"another cluster's label":             {Endpoint: &web, Identities: []wire.Identity{identityOf("blue", webID)}},
		"no cluster's label":                  {Endpoint: &web, Identities: []wire.Identity{{ID: webID, Labels: "k8s:app=web;"}}},
		"an identity that nobody asked for":   {Endpoint: &web, Identities: []wire.Identity{labels, identityOf("red", dbID)}},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			f := setup(t, func(s *settings) { s.log = slog.New(slog.NewJSONHandler(&logged, nil)) })
			f.source.answer(func(context.Context, Question) (Answer, error) { return answer, nil })
			r := f.resolve(podAddr)
			f.eventually(func(t *assert) {
				row := f.row(podAddr)
				require.NotNil(t, row)
				require.Equal(t, r.Err.Error(), row.Reason)
			})
			for _, part := range []string{`"cluster":"red"`, `"address":"10.2.0.10"`, `"error":`, `"resolver":"local"`} {
				require.Contains(t, logged.String(), part)
			}
			require.Equal(t, OutcomeRefused, r.Outcome)
			require.Error(t, r.Err)
			require.Zero(t, f.tables.Endpoints.NumObjects(f.db.ReadTxn()))
			require.Zero(t, f.tables.Identities.NumObjects(f.db.ReadTxn()))

			f.miss(to(podAddr))
			f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeRefused)) })
			require.EqualValues(t, 1, f.source.asked.Load(), "not with each packet")
		})
	}
}

// TestFloodOfRefusals: what is refused is logged for each cluster, and of none without end.
func TestFloodOfRefusals(t *testing.T) {
	var logged bytes.Buffer
	r := newRefusals(slog.New(slog.NewJSONHandler(&logged, nil)))
	for range 1000 {
		r.refuse(Question{Cluster: "red", Addr: podAddr}, "local", ErrRefused)
	}
	r.refuse(Question{Cluster: "blue", Addr: blueAddr}, "local", ErrRefused)
	require.Less(t, strings.Count(logged.String(), `"red"`), 100)
	require.Equal(t, 1, strings.Count(logged.String(), `"blue"`))
	r.keep(map[string]struct{}{"blue": {}})
	require.Len(t, r.clusters, 1)
}

// TestNamesForATerminal: a remote cluster's names forge neither lines nor escapes.
func TestNamesForATerminal(t *testing.T) {
	row := Row{
		Kind: KindEndpoint, Addr: podAddr, Cluster: "red", Namespace: "shop\x1b[2J", Pod: "web\nendpoint   10.2.0.99\t\u009b",
		From: "local", Reason: "a\rb",
	}
	list := List{Entries: []ListedRow{{Row: row}}, Away: []ListedAway{{Resolver: "a\nb", Cluster: "red"}}}
	var out strings.Builder
	require.NoError(t, list.Print(&out))
	for _, text := range append(row.TableRow(), strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")...) {
		require.NotContains(t, text, "\x1b")
		require.False(t, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", text)
	}
	require.Equal(t, 3, strings.Count(out.String(), "\n"))
	require.Contains(t, out.String(), `\x1b[2J`)
}

func TestHostOfARemoteClusterIsARemoteNode(t *testing.T) {
	f := setup(t)
	ep := endpointAt(podAddr, identityHost)
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{Endpoint: &ep}, nil })
	require.Equal(t, Outcome("local"), f.resolve(podAddr).Outcome)
	require.Equal(t, identityRemoteNode, f.endpoint(podAddr).Identity())
}

func TestEndpointWithoutItsIdentity(t *testing.T) {
	f := setup(t)
	ep := endpointAt(podAddr, webID)
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{Endpoint: &ep}, nil })
	r := f.resolve(podAddr)
	require.Equal(t, OutcomeNegative, r.Outcome)
	require.ErrorIs(t, r.Err, ErrUnknownIdentity)
	require.ErrorContains(t, r.Err, "131082")
	require.NotContains(t, r.Err.Error(), ErrNotFound.Error(), "the address is known")
	f.eventually(func(t *assert) {
		row := f.row(podAddr)
		require.NotNil(t, row)
		require.Equal(t, r.Err.Error(), row.Reason)
	})
	require.Nil(t, f.endpoint(podAddr), "policy would drop it all the same")

	f.do(func(tx *state.Txn) {
		tx.UpsertIdentity(f.writer.Origin("red", redID, state.SourceClusterMesh), identityOf("red", webID))
	})
	require.Equal(t, Outcome("local"), f.resolve(podAddr).Outcome)
}

func TestPacketsWithForeignIdentities(t *testing.T) {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(from(podAddr, blueWebID))
	f.requireResolved(podAddr, webID)
	require.Nil(t, f.identity(blueWebID))
	require.Equal(t, 1, counterValue(f.engine.metrics.foreign))
}

func TestAddressesOfNobody(t *testing.T) {
	f := setup(t)
	f.miss(to(netip.MustParseAddr("192.0.2.1")))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeRefused)) })
	_, err := f.engine.Resolve(context.Background(), netip.MustParseAddr("192.0.2.1"))
	require.ErrorIs(t, err, ErrRefused)
	require.Zero(t, f.source.asked.Load())
}

// TestChain has two resolvers, of which the first may know a part.
func TestChain(t *testing.T) {
	away := func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable }
	refuses := func(context.Context, Question) (Answer, error) { return Answer{}, ErrRefused }
	absent := func(context.Context, Question) (Answer, error) { return Answer{}, ErrNotFound }
	nonsense := func(context.Context, Question) (Answer, error) {
		return Answer{Endpoint: new(endpointAt(otherAddr, webID))}, nil
	}
	endpoint := func(context.Context, Question) (Answer, error) {
		return Answer{Endpoint: new(endpointAt(podAddr, webID))}, nil
	}
	labels := func(context.Context, Question) (Answer, error) {
		return Answer{Identities: []wire.Identity{identityOf("red", webID)}}, nil
	}
	all := func(context.Context, Question) (Answer, error) {
		return Answer{Endpoint: new(endpointAt(podAddr, webID)), Identities: []wire.Identity{identityOf("red", webID)}}, nil
	}
	for name, of := range map[string]struct {
		first, second func(context.Context, Question) (Answer, error)
		outcome       Outcome
	}{
		"the first knows":                      {all, away, "local"},
		"the second knows":                     {absent, all, "second"},
		"the first is away, the second knows":  {away, all, "second"},
		"the first talks nonsense":             {nonsense, all, "second"},
		"neither knows":                        {absent, absent, OutcomeNegative},
		"the one that would know is away":      {absent, away, OutcomeUnavailable},
		"the first is away, the second absent": {away, absent, OutcomeUnavailable},
		"one refuses":                          {refuses, absent, OutcomeRefused},
		"each has a half of it":                {endpoint, labels, "second"},
		"the labels are away":                  {endpoint, away, OutcomeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := prepare(t)
			second := &source{name: "second"}
			second.answer(of.second)
			f.source.answer(of.first)
			f.engine.chain.others = append(f.engine.chain.others, newGuarded(second, breakerPause, func() {}))
			f.start()
			<-f.engine.settled
			r := f.resolve(podAddr)
			require.Equal(t, of.outcome, r.Outcome)
			if of.outcome == "local" || of.outcome == "second" {
				require.NoError(t, r.Err)
				require.NotNil(t, f.endpoint(podAddr))
			} else {
				require.Error(t, r.Err)
				require.Nil(t, f.endpoint(podAddr))
			}
		})
	}
}

func TestClusterThatIsAwayIsLeftAlone(t *testing.T) {
	f := setup(t, func(s *settings) { s.breakerPause = 50 * time.Millisecond })
	var away atomic.Bool
	away.Store(true)
	f.source.has(endpointAt(podAddr, webID), endpointAt(blueAddr, blueWebID))
	has := f.source.with
	var redAsked atomic.Int64
	f.source.answer(func(ctx context.Context, q Question) (Answer, error) {
		if q.Cluster != "red" {
			return has(ctx, q)
		}
		if redAsked.Add(1); away.Load() {
			return Answer{}, fmt.Errorf("%w: connection refused", ErrUnavailable)
		}
		return has(ctx, q)
	})
	for range breakerFailures {
		require.Equal(t, OutcomeUnavailable, f.resolve(podAddr).Outcome)
	}
	f.eventually(func(t *assert) {
		f.resolve(podAddr) // the pause may be over
		require.Contains(t, f.degraded("away"), "red")
	})
	require.Equal(t, Outcome("local"), f.resolve(blueAddr).Outcome, "another cluster isn't affected")

	// While it is away it is asked once in a while, however many packets there are.
	asked := redAsked.Load()
	began := time.Now()
	for range 100 {
		require.Equal(t, OutcomeUnavailable, f.resolve(podAddr).Outcome)
	}
	pauses := int64(time.Since(began) / (50 * time.Millisecond))
	require.LessOrEqual(t, redAsked.Load()-asked, pauses+1)

	away.Store(false)
	f.eventually(func(t *assert) { require.Equal(t, Outcome("local"), f.resolve(podAddr).Outcome) })
	f.eventually(func(t *assert) { require.Empty(t, f.degraded("away")) })
}

// TestPauseEndsByItself: nobody asks for anything any more.
func TestPauseEndsByItself(t *testing.T) {
	f := setup(t, func(s *settings) { s.breakerPause = 50 * time.Millisecond })
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
	for range breakerFailures {
		require.Equal(t, OutcomeUnavailable, f.resolve(podAddr).Outcome)
	}
	f.eventually(func(t *assert) {
		says, said := f.health.says.Load("away")
		require.True(t, said && says == "", says)
		require.Empty(t, f.engine.chain.others[0].away())
	})
}

// TestClusterThatLeavesIsNotAway, however long the pause.
func TestClusterThatLeavesIsNotAway(t *testing.T) {
	f := setup(t, func(s *settings) { s.breakerPause = time.Hour })
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
	for range breakerFailures {
		require.Equal(t, OutcomeUnavailable, f.resolve(podAddr).Outcome)
	}
	f.eventually(func(t *assert) { require.Contains(t, f.degraded("away"), "red") })
	f.leave("red", redID)
	f.eventually(func(t *assert) { require.Empty(t, f.degraded("away")) })
}

func TestConfigNamesTheFlag(t *testing.T) {
	for flag, change := range map[string]func(*Config){
		flagTTL:           func(c *Config) { c.TTL = time.Millisecond },
		flagNegativeTTL:   func(c *Config) { c.NegativeTTL = 0 },
		flagLookupTimeout: func(c *Config) { c.LookupTimeout = -1 },
		flagInterval:      func(c *Config) { c.Interval = 0 },
		flagConcurrency:   func(c *Config) { c.Concurrency = 0 },
		flagMaxEntries:    func(c *Config) { c.MaxEntries = -1 },
		flagRate:          func(c *Config) { c.Rate = 0 },
		flagLookupRate:    func(c *Config) { c.LookupRate = 0 },
		flagInterfaces:    func(c *Config) { c.Interfaces = []string{"l+c"} },
		flagDevices:       func(c *Config) { c.Interfaces, c.Devices = nil, nil },
		flagIPCacheMap:    func(c *Config) { c.IPCacheMap = "cilium_ipcache_v2" },
		flagEtcdConfig:    func(c *Config) { c.EtcdConfig = "etcd.yaml" },
		flagPodCIDRs:      func(c *Config) { c.PodCIDRs = []string{"red=10.2.0.0/16", "blue=10.2.3.0/24"} },
	} {
		config := DefaultConfig
		_, err := config.validate()
		require.NoError(t, err)
		change(&config)
		_, err = config.validate()
		require.ErrorContains(t, err, "--"+flag)
	}
	for flag, change := range map[string]func(*Config){
		flagMaxEntries: func(c *Config) { c.MaxEntries = bpf.MaxMaxFollowed + 1 },
		flagRate:       func(c *Config) { c.Rate = bpf.MaxRate + 1 },
	} {
		config := DefaultConfig
		change(&config)
		_, err := config.validate()
		require.ErrorContains(t, err, "--"+flag)
		require.ErrorContains(t, err, "between 1 and")
	}
	for _, value := range []string{"10.2.0.0/16", "=10.2.0.0/16", "red=10.2.0.1/16", "red=10.2.0.0", "red=::ffff:10.2.0.0/112",
		"red=0.0.0.0/0", "red=::/0", "red=127.0.0.0/16", "red=224.0.0.0/24", "red=169.254.3.0/24", "red=fe80::/64", "red=::1/128", "red=ff02::/16"} {
		_, err := parseFlagCIDRs([]string{value})
		require.ErrorContains(t, err, "--"+flagPodCIDRs, value)
		require.ErrorContains(t, err, value)
	}
	cidrs, err := parseFlagCIDRs([]string{"red=10.2.0.0/16", "red=10.2.3.0/24", "blue=fd03::/48"})
	require.NoError(t, err)
	require.Len(t, cidrs, 3)
}

func TestSources(t *testing.T) {
	t.Run("the flag names a cluster that isn't configured", func(t *testing.T) {
		f := setup(t, func(s *settings) {
			s.flagCIDRs = []flagCIDR{{"green", netip.MustParsePrefix("10.4.0.0/16")}, {"home", netip.MustParsePrefix("10.1.0.0/16")}}
		})
		f.eventually(func(t *assert) {
			require.Contains(t, f.degraded("pod-cidrs"), `--ondemand-pod-cidrs names 1 clusters that aren't configured: "green"`)
		})
		f.join("green", 4)
		f.eventually(func(t *assert) {
			require.Empty(t, f.degraded("pod-cidrs"))
			require.True(t, f.kernel.looksAt("10.4.0.0/16"))
		})
	})
	t.Run("blind", func(t *testing.T) {
		f := setup(t)
		f.join("green", 4) // its nodes have no pod CIDRs
		f.eventually(func(t *assert) {
			require.Contains(t, f.degraded("pod-cidrs"), `blind for 1 clusters`)
			require.Contains(t, f.degraded("pod-cidrs"), "green")
			require.Contains(t, f.degraded("pod-cidrs"), flagPodCIDRs)
		})
		f.join("green", 4, "10.4.0.0/24")
		f.eventually(func(t *assert) { require.Empty(t, f.degraded("pod-cidrs")) })
	})
	t.Run("by flag", func(t *testing.T) {
		f := setup(t, func(s *settings) { s.flagCIDRs = []flagCIDR{{"green", netip.MustParsePrefix("10.4.0.0/16")}} })
		f.requireOwner("10.4.0.1", "")
		f.join("green", 4)
		f.requireOwner("10.4.0.1", "green")
		f.eventually(func(t *assert) { require.Empty(t, f.degraded("pod-cidrs")) })
		f.kernel.mu.Lock()
		require.EqualValues(t, 4, f.kernel.cidrs[netip.MustParsePrefix("10.4.0.0/16")])
		f.kernel.mu.Unlock()
	})
	t.Run("overlap", func(t *testing.T) {
		f := setup(t)
		f.join("green", 4, "10.2.0.0/16")
		f.requireOwner("10.2.0.1", "")
		f.eventually(func(t *assert) {
			require.Contains(t, f.degraded("pod-cidrs"), `10.2.0.0/16 of cluster "green" overlaps 10.2.0.0/24 of cluster "red"`)
		})
		f.leave("green", 4)
		f.requireOwner("10.2.0.1", "red")
		f.eventually(func(t *assert) { require.Empty(t, f.degraded("pod-cidrs")) })
	})
	t.Run("the kernel fails", func(t *testing.T) {
		f := setup(t)
		f.kernel.fail(errors.New("no memory"))
		f.join("green", 4, "10.4.0.0/24")
		f.eventually(func(t *assert) {
			require.Contains(t, f.degraded("pod-cidrs"), "no memory")
		})
		f.kernel.fail(nil)
		f.eventually(func(t *assert) {
			require.Empty(t, f.degraded("pod-cidrs"))
			f.kernel.mu.Lock()
			defer f.kernel.mu.Unlock()
			require.Contains(t, f.kernel.cidrs, netip.MustParsePrefix("10.4.0.0/24"))
		})
	})
}

func TestForeignIdentityThatIsKnown(t *testing.T) {
	f := setup(t)
	f.do(func(tx *state.Txn) {
		tx.UpsertIdentity(f.writer.Origin("blue", blueID, state.SourceClusterMesh), identityOf("blue", blueWebID))
	})
	ep := endpointAt(podAddr, blueWebID)
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{Endpoint: &ep}, nil })
	require.Equal(t, OutcomeRefused, f.resolve(podAddr).Outcome)
	require.Nil(t, f.endpoint(podAddr))
}

func TestAbsenceIsOfWhatWasAskedFor(t *testing.T) {
	f := setup(t)
	require.Equal(t, OutcomeNegative, f.resolve(podAddr).Outcome)
	f.miss(from(podAddr, webID)) // names an identity, which nobody has asked for yet
	f.eventually(func(t *assert) { require.EqualValues(t, 2, f.source.asked.Load()) })
	f.eventually(func(t *assert) { require.True(t, f.swallowed(podAddr, webID)) })
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.Equal(t, 2, f.count(bpf.SideSource, OutcomeNegative)) })
	require.EqualValues(t, 2, f.source.asked.Load())
}
