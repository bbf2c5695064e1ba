// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	leaderlife "github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh"
	upstream "github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/testing/mesh"
	"github.com/waggle-mesh/waggle/testing/relay"
)

// told is all that health was told, each with the error behind it.
type told struct {
	cell.Health
	mu    sync.Mutex
	texts []string
}

func (h *told) OK(text string) { h.add(text) }

func (h *told) Degraded(text string, err error) { h.add(text + ": " + err.Error()) }

func (h *told) add(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.texts = append(h.texts, text)
}

func (h *told) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.texts)
}

// last waits until the last one begins so.
func (h *told) last(t *testing.T, begin string) {
	t.Helper()
	require.Eventually(t, func() bool {
		all := h.all()
		return len(all) > 0 && strings.HasPrefix(all[len(all)-1], begin)
	}, patience, tick, begin)
}

// What health is told.
const (
	awaitingEtcd  = "Waiting for the local etcd"
	acquiring     = "Acquiring the lock of the leader"
	failing       = "The local etcd has a problem, trying again"
	anotherLeads  = "Another replica is the leader"
	thisOneLeads  = "This replica is the leader"
	outlastsATest = 10 * time.Minute
)

type noShutdown struct{ t *testing.T }

func (n noShutdown) Shutdown(...hive.ShutdownOption) { n.t.Error("the process would end") }

// newElection makes a replica's part in it whose etcd is behind a relay, and a client
// that has that etcd without one.
func newElection(t *testing.T, readyAfter time.Duration) (e *election, aim func(), direct *etcd.Client) {
	west := mesh.NewCluster(t, "west", 2)
	way, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(way.Close)
	client, err := etcd.NewClient(mesh.Log(t), etcd.ClientConfig{Endpoints: []string{"http://" + way.Address()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	e = &election{electionParams: electionParams{
		Log: mesh.Log(t), Shutdowner: noShutdown{t}, Client: client, Fence: &etcd.Fence{},
		Leader: &leaderlife.LeaderLifecycle{}, Metrics: upstream.MetricsProvider(),
		Readiness: readiness{ready: func() {}},
		Times:     electionTimes{lockTTL: outlastsATest, readyAfter: readyAfter},
	}}
	return e, func() { way.Aim(strings.TrimPrefix(west.Etcd.URL(), "http://")) }, west.Etcd.Client()
}

// TestElectionHealth: what health says of a replica is so, from an etcd that isn't there
// to the turn that comes.
func TestElectionHealth(t *testing.T) {
	e, aim, direct := newElection(t, outlastsATest)
	other, err := concurrency.NewSession(direct.Etcd(), concurrency.WithTTL(int(outlastsATest.Seconds())))
	require.NoError(t, err)
	lock := concurrency.NewMutex(other, lockName)
	require.NoError(t, lock.Lock(t.Context()))
	defer func() { require.NoError(t, other.Close()) }()

	ctx, cancel := context.WithCancel(t.Context())
	health := &told{}
	var job sync.WaitGroup
	defer job.Wait()
	defer cancel()
	job.Go(func() { _ = e.run(ctx, health) })
	health.last(t, awaitingEtcd+": ")
	aim()
	health.last(t, anotherLeads) // long before it is time to be ready
	all := health.all()
	require.Equal(t, acquiring, all[len(all)-2])

	require.NoError(t, lock.Unlock(t.Context()))
	health.last(t, thisOneLeads)
}

// TestElectionFails: while the etcd, which is full, lets nobody be the leader, nobody is said
// to be, however long it takes; a replica that waits is ready in time all the same.
func TestElectionFails(t *testing.T) {
	e, aim, direct := newElection(t, time.Millisecond)
	ready := make(chan struct{})
	e.Readiness.ready = sync.OnceFunc(func() { close(ready) })
	health := &told{}
	aim()
	session, err := e.session(t.Context(), health)
	require.NoError(t, err)
	defer session.Orphan()

	member, err := direct.Etcd().Status(t.Context(), direct.Etcd().Endpoints()[0])
	require.NoError(t, err)
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: member.Header.MemberId, Alarm: pb.AlarmType_NOSPACE}
	_, err = pb.NewMaintenanceClient(direct.Etcd().ActiveConnection()).Alarm(t.Context(), alarm)
	require.NoError(t, err)
	locked := make(chan error, 1)
	go func() { locked <- e.lock(t.Context(), session, concurrency.NewMutex(session, lockName), health) }()
	health.last(t, failing+": acquiring the lock of the leader: ")
	<-ready
	_, err = direct.Etcd().AlarmDisarm(t.Context(), &clientv3.AlarmMember{MemberID: alarm.MemberID, Alarm: alarm.Alarm})
	require.NoError(t, err)
	require.NoError(t, <-locked)
	for _, text := range health.all() {
		require.NotContains(t, text, anotherLeads)
	}
}
