// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// talk has something go to and fro over one connection until stop, and counts how often
// it has.
func talk(t *testing.T, r *rig, pod *netns.Pod, remote netip.Addr) (rounds *atomic.Int64, stop func()) {
	conn, err := pod.Connect(within(t), pod.Addrs[0], netip.AddrPortFrom(remote, port))
	require.NoError(t, err)
	var (
		talking sync.WaitGroup
		failure error
		ended   atomic.Bool
	)
	rounds = &atomic.Int64{}
	talking.Go(func() {
		for !ended.Load() && failure == nil {
			if failure = echoed(conn); failure == nil {
				rounds.Add(1)
			}
		}
	})
	stop = sync.OnceFunc(func() {
		ended.Store(true)
		talking.Wait()
		conn.Close()
		require.NoError(t, failure)
	})
	t.Cleanup(stop)
	return rounds, stop
}

// TestRestart: an agent that is restarted knows again what it had resolved, and what
// goes on meanwhile doesn't notice.
func TestRestart(t *testing.T) {
	r := newRig(t, newWorld(t, false), way{side: bpf.SideDestination})
	r.start()
	pod := r.addPod("a", 5)
	rounds, stop := talk(t, r, pod, remotes[0])
	goesOn := func() {
		t.Helper()
		until := rounds.Load() + 100
		r.eventually(func() bool { return rounds.Load() >= until }, "the connection goes on")
	}
	goesOn()
	_, before, err := r.enforcer.Verdicts()
	require.NoError(t, err)

	for range 2 {
		r.stop()
		require.Positive(t, r.programs(pod.Index), "the programs stay")
		goesOn()
		r.start()
		r.eventually(func() bool { _, ok := r.row(remotes[0]); return ok }, "the agent knows again what it had resolved")
		r.eventually(func() bool { _, initialized := r.Endpoints.Initialized(r.db.ReadTxn()); return isClosed(initialized) }, "the table is complete")
		goesOn()
	}
	stop()
	_, after, err := r.enforcer.Verdicts()
	require.NoError(t, err)
	require.Equal(t, before, after, "packets were dropped of a connection that was established")

	// And it goes on resolving.
	r.requireReached(pod, 1, remotes[1], true)
}

// TestTurnedOff: an agent that is started without the feature takes it out of the kernel,
// with what was resolved.
func TestTurnedOff(t *testing.T) {
	r := newRig(t, newWorld(t, false), way{side: bpf.SideDestination})
	r.start()
	pod := r.addPod("a", 5)
	r.requireReached(pod, 0, remotes[0], true)
	require.Positive(t, r.programs(pod.Index))
	require.Positive(t, r.programs(r.device()))
	r.stop()

	r.off = true
	r.agent = r.newAgent()
	r.start()
	require.Zero(t, r.programs(pod.Index))
	require.Zero(t, r.programs(r.device()))
	pinned, err := filepath.Glob(filepath.Join(r.bpfRoot, "*", "*"))
	require.NoError(t, err)
	path, _ := r.datapath.PinPath()
	require.Equal(t, []string{path}, pinned)
	_, err = os.Stat(path)
	require.NoError(t, err)
	r.eventually(func() bool {
		entry, ok := r.datapath.Lookup(remotes[0])
		return ok && entry.Identity != friendID
	}, "what was resolved is gone from the map")
	require.False(t, r.reach(r.connectTCP, pod, 0, remotes[0]))
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
