// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// TestRemoteClusterAway: while the other cluster's etcd is away nobody asks it without
// end, and the tables and metrics say what the matter is; when it is back, the connection
// that was begun meanwhile comes about.
func TestRemoteClusterAway(t *testing.T) {
	r := newRig(t, newWorld(t, true), way{side: bpf.SideDestination})
	r.start()
	pod := r.addPod("a", 5)
	r.there.Etcd.Stop()
	began := time.Now()

	// Many packets to many addresses, until many lookups have come to nothing.
	const lookups = 2000
	socket, err := pod.UDP(netip.AddrPortFrom(pod.Addrs[0], 0))
	require.NoError(t, err)
	defer socket.Close()
	given := func() float64 {
		return r.metric("waggle_ondemand_misses_total", "outcome", "unavailable") + r.metric("waggle_ondemand_misses_total", "outcome", "timeout")
	}
	r.eventually(func() bool {
		require.NoError(t, netns.Scan(socket, netip.MustParseAddrPort("10.40.0.0:9"), 500))
		_, err := socket.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(remotes[0], port))
		require.NoError(t, err)
		return given() >= lookups
	}, "lookups have come to nothing")
	_, known := r.row(remotes[0])
	require.False(t, known, "nobody says that there is nothing")
	require.Zero(t, r.metric("waggle_ondemand_entries", "kind", "endpoint"))
	r.eventually(func() bool {
		_, err := socket.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(remotes[0], port))
		require.NoError(t, err)
		return r.healthOf("clusters-away") == "Clusters are left alone for a while, since lookups have failed"
	}, "health says that the cluster isn't asked")

	// After some failures in a row the cluster is left alone, and tried now and then: five
	// requests, what was under way by then, and one in each pause, each of 120 at the most.
	asked := sumOf(t, r.readThrough, "waggle_kvstoremesh_ondemand_requests_total")
	requests := float64(5 + 2 + time.Since(began)/(5*time.Second) + 1)
	require.LessOrEqual(t, asked, 120*requests, "of %.0f lookups", given())
	require.LessOrEqual(t, sumOf(t, r.readThrough, "waggle_kvstoremesh_ondemand_remote_requests_total"), requests)

	// Begun now, a connection comes about when the cluster is back; where that takes longer
	// than TCP goes on, or falls between two of its packets, the next one does.
	done := make(chan error, 1)
	go func() {
		err := r.connectTCP(within(t), pod.Namespace, pod.Addrs[0], remotes[0])
		for errors.Is(err, unix.ETIMEDOUT) {
			err = r.connectTCP(within(t), pod.Namespace, pod.Addrs[0], remotes[0])
		}
		done <- err
	}()
	r.there.Etcd.Start()
	require.NoError(t, <-done)
	row, ok := r.row(remotes[0])
	require.True(t, ok)
	require.Equal(t, ondemand.KindEndpoint, row.Kind)
}
