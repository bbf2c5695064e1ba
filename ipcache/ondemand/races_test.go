// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// held is a source whose answer to each question waits until a test lets it go.
func (f *fixture) held(endpoints ...wire.Endpoint) (asked <-chan Question, answer chan<- struct{}) {
	questions, let := make(chan Question, 16), make(chan struct{})
	f.source.has(endpoints...)
	has := f.source.with
	f.source.answer(func(ctx context.Context, q Question) (Answer, error) {
		answer, err := has(ctx, q)
		questions <- q
		select {
		case <-let:
			return answer, err
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		}
	})
	return questions, let
}

func patient(s *settings) { s.config.LookupTimeout = patience }

func TestPushedWhileTheLookupRuns(t *testing.T) {
	f := setup(t, patient)
	asked, answer := f.held(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	<-asked
	f.push(endpointAt(podAddr, dbID))
	answer <- struct{}{}
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, "local")) })
	row := f.endpoint(podAddr)
	require.Equal(t, state.SourceClusterMesh, row.Origin().Source)
	require.EqualValues(t, dbID, row.Identity())
	require.Empty(t, row.Waiting())
	require.Nil(t, f.row(podAddr))
	require.Nil(t, f.identity(webID), "nobody uses it")
	require.False(t, f.kernel.follows(podAddr))

	f.unpush(podAddr)
	require.Nil(t, f.endpoint(podAddr), "the answer from before doesn't come back")
}

func TestPushedAndDeletedWhileTheLookupRuns(t *testing.T) {
	f := setup(t, patient)
	asked, answer := f.held(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	<-asked
	f.push(endpointAt(podAddr, webID))
	f.unpush(podAddr)
	answer <- struct{}{}
	<-asked // once more
	f.source.answer(nil)
	answer <- struct{}{}
	f.requireResolved(podAddr, webID)
	require.EqualValues(t, 2, f.source.asked.Load())
	require.Equal(t, 1, f.count(bpf.SideDestination, "local"), "one packet, one outcome")
}

func TestPushedAfterItWasResolved(t *testing.T) {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
	f.push(endpointAt(podAddr, webID))
	require.Equal(t, state.SourceClusterMesh, f.endpoint(podAddr).Origin().Source)
	require.Equal(t, state.SourceClusterMesh, f.identity(webID).Origin.Source)
	list, err := (&Service{engine: f.engine}).List()
	require.NoError(t, err)
	require.Empty(t, list.Entries)

	f.elapse(f.engine.config.TTL)
	f.eventually(func(t *assert) {
		require.Nil(t, f.row(podAddr))
		require.False(t, f.kernel.follows(podAddr))
	})
	require.Equal(t, 1, f.again(outcomeTakenOver))
	require.NotNil(t, f.endpoint(podAddr), "what was pushed stays")
	require.NotNil(t, f.identity(webID))
}

func TestCIDRMovesToAnotherClusterWhileTheLookupRuns(t *testing.T) {
	f := setup(t, patient)
	asked, answer := f.held(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	<-asked
	f.leave("red", redID)
	f.join("blue", blueID, "10.3.0.0/24", "10.2.0.0/24")
	f.requireOwner(podAddr.String(), "blue")
	answer <- struct{}{}
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeRefused)) })
	require.Nil(t, f.endpoint(podAddr))
	require.Nil(t, f.identity(webID))
}

func TestAddressReusedByAnotherCluster(t *testing.T) {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)

	f.source.has(endpointAt(podAddr, blueWebID))
	f.leave("red", redID)
	f.join("blue", blueID, "10.3.0.0/24", "10.2.0.0/24")
	f.requireGone(podAddr)
	require.Nil(t, f.identity(webID))
	f.requireOwner(podAddr.String(), "blue")
	f.miss(to(podAddr))
	f.requireResolved(podAddr, blueWebID)
	require.Equal(t, "blue", f.endpoint(podAddr).Origin().Cluster)
	require.Zero(t, f.writer.Counts("red"))
}

func TestOriginGoes(t *testing.T) {
	for name, goes := range map[string]func(*fixture){
		"cluster removed": func(f *fixture) { f.leave("red", redID) },
		"row of the cluster removed first": func(f *fixture) {
			f.do(func(tx *state.Txn) { tx.DeleteRemoteCluster("red") })
		},
		"ID changed": func(f *fixture) {
			f.leave("red", redID)
			f.join("red", 9, "10.2.0.0/24")
		},
		"CIDR withdrawn": func(f *fixture) { f.join("red", redID, "10.99.0.0/24") },
		"CIDR claimed by another cluster": func(f *fixture) {
			f.join("blue", blueID, "10.3.0.0/24", "10.2.0.0/16")
		},
		"CIDR is ours": func(f *fixture) {
			f.do(func(tx *state.Txn) {
				tx.UpsertNode(f.writer.Origin("home", 1, state.SourceLocal), wire.Node{
					Name: "n1", Cluster: "home", ClusterID: 1, PodCIDRs4: prefixes("10.2.0.0/16")})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			f.source.has(endpointAt(podAddr, webID), endpointAt(blueAddr, blueWebID))
			f.miss(to(podAddr), to(blueAddr), from(otherAddr, webID))
			f.requireResolved(podAddr, webID)
			f.requireResolved(blueAddr, blueWebID)
			f.eventually(func(t *assert) { require.Equal(t, KindAbsent, kindOf(f.row(otherAddr))) })

			goes(f)
			f.requireGone(podAddr)
			f.eventually(func(t *assert) {
				require.Nil(t, f.row(podAddr))
				require.Nil(t, f.row(otherAddr))
				require.False(t, f.kernel.follows(podAddr))
			})
			require.NotNil(t, f.endpoint(blueAddr), "another cluster's stays")
		})
	}
}

func TestIdentitiesGoWithTheirCluster(t *testing.T) {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(from(otherAddr, dbID), to(podAddr))
	f.source.answer(func(_ context.Context, q Question) (Answer, error) {
		return Answer{Identities: []wire.Identity{identityOf(q.Cluster, q.Identity)}}, nil
	})
	f.miss(from(otherAddr, dbID))
	f.elapse(f.engine.config.NegativeTTL)
	f.miss(from(otherAddr, dbID))
	f.eventually(func(t *assert) { require.NotNil(t, f.identity(dbID)) })
	f.leave("red", redID)
	f.eventually(func(t *assert) {
		require.Nil(t, f.identity(dbID))
		require.Nil(t, f.identity(webID))
	})
	require.Zero(t, f.writer.Counts("red"))
}

func TestOneLookupAnAddress(t *testing.T) {
	f := setup(t, patient)
	asked, answer := f.held(endpointAt(podAddr, webID), endpointAt(otherAddr, dbID))
	f.miss(to(podAddr))
	<-asked
	f.miss(to(podAddr), to(podAddr), from(podAddr, 0))
	f.miss(from(podAddr, dbID)) // another question: after the first, once
	f.miss(from(podAddr, dbID))
	close(answer)
	f.eventually(func(t *assert) {
		require.Equal(t, 3, f.count(bpf.SideDestination, "local"))
		require.Equal(t, 3, f.count(bpf.SideSource, "local"))
		require.NotNil(t, f.identity(dbID))
	})
	f.requireResolved(podAddr, webID)
	require.EqualValues(t, 2, f.source.asked.Load())
}

func TestStoppedWhileLookupsRun(t *testing.T) {
	f := setup(t, patient)
	asked, _ := f.held(endpointAt(podAddr, webID))
	f.miss(to(podAddr), to(otherAddr))
	<-asked
	<-asked
	f.stop() // goleak has the rest
	require.Nil(t, f.endpoint(podAddr))
}

func TestDeadline(t *testing.T) {
	f := setup(t, func(s *settings) { s.config.LookupTimeout = 5 * time.Millisecond })
	f.source.answer(func(ctx context.Context, _ Question) (Answer, error) {
		<-ctx.Done()
		return Answer{}, ErrUnavailable // as some libraries hide it
	})
	require.Equal(t, OutcomeTimeout, f.resolve(podAddr).Outcome)
	f.source.has(endpointAt(podAddr, webID))
	require.Equal(t, Outcome("local"), f.resolve(podAddr).Outcome, "that it couldn't be asked isn't remembered")
}

// TestPushedAndDeletedWhileAnEntryIsAskedForAgain: the entry of before is as much out of
// date as the answer.
func TestPushedAndDeletedWhileAnEntryIsAskedForAgain(t *testing.T) {
	for name, then := range map[string][]wire.Endpoint{"gone": nil, "another": {endpointAt(podAddr, dbID)}} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, patient)
			f.source.has(endpointAt(podAddr, webID))
			f.miss(to(podAddr))
			f.requireResolved(podAddr, webID)
			f.eventually(func(t *assert) { require.True(t, f.kernel.follows(podAddr)) })

			asked, answer := f.held(endpointAt(podAddr, webID))
			f.use(podAddr)
			<-asked
			f.push(endpointAt(podAddr, webID))
			f.unpush(podAddr)
			f.source.has(then...)
			answer <- struct{}{}
			if then != nil {
				f.requireResolved(podAddr, dbID)
				f.eventually(func(t *assert) { require.Equal(t, 1, f.again("local")) })
				require.True(t, f.kernel.follows(podAddr))
			} else {
				f.eventually(func(t *assert) { require.Equal(t, 1, f.again(OutcomeNegative)) })
				require.Nil(t, f.endpoint(podAddr))
				f.eventually(func(t *assert) { require.False(t, f.kernel.follows(podAddr)) })
			}
			require.EqualValues(t, 3, f.source.asked.Load())
		})
	}
}

// TestNeighboursComeAndGoWhileTheLookupRuns: nothing is asked again for them. A watch of
// the table would tell of what is beside an absent address, too.
func TestNeighboursComeAndGoWhileTheLookupRuns(t *testing.T) {
	for name, there := range map[string][]wire.Endpoint{"absent": nil, "there": {endpointAt(podAddr, webID)}} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, patient)
			asked, answer := f.held(there...)
			f.miss(to(podAddr))
			<-asked
			for n := range byte(20) {
				if addr := netip.AddrFrom4([4]byte{10, 2, 0, n}); addr != podAddr {
					f.push(endpointAt(addr, webID))
					f.unpush(addr)
				}
			}
			answer <- struct{}{}
			outcome := Outcome("local")
			if there == nil {
				outcome = OutcomeNegative
			}
			f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, outcome)) })
			require.EqualValues(t, 1, f.source.asked.Load())
		})
	}
}

// TestAddressThatIsThereByTheSecondPacket which TCP sends a second after the first, to an
// address that was absent by the first one's lookup, even if that took a while.
func TestAddressThatIsThereByTheSecondPacket(t *testing.T) {
	f := setup(t)
	const lookup = 100 * time.Millisecond
	f.source.answer(func(context.Context, Question) (Answer, error) {
		f.clock.Step(lookup)
		return Answer{}, ErrNotFound
	})
	f.miss(to(podAddr))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeNegative)) })
	f.source.has(endpointAt(podAddr, webID))
	f.clock.Step(time.Second - lookup)
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
}
