// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// attempts are how often TestThereByTheSecondSYN may find the machine so busy that a
// packet comes before what it is about is done.
const attempts = 5

// TestThereByTheSecondSYN has one TCP connection, and not a packet more, made to a pod
// that appears only after its first SYN was dropped and its address was found to be
// absent. The SYN that is sent next finds it, and the one after that gets through.
func TestThereByTheSecondSYN(t *testing.T) {
	clusters := newWorld(t, true)
	r := newRig(t, clusters, way{side: bpf.SideDestination})
	r.start()
	pod := r.addPod("a", 5)
	negatives := func() float64 {
		return r.metric("waggle_ondemand_misses_total", "side", r.side.String(), "outcome", "negative")
	}
	dropped := func() uint64 {
		_, dropped, err := r.enforcer.Verdicts()
		require.NoError(t, err)
		return dropped
	}
	for attempt := range attempts {
		late := netip.AddrFrom4([4]byte{10, 32, 8, byte(attempt + 1)})
		before := negatives()
		connected, ctx := make(chan error, 1), within(t)
		go func() { connected <- r.connectTCP(ctx, pod.Namespace, pod.Addrs[0], late) }()
		r.eventually(func() bool { return negatives() > before }, "the address is absent")
		clusters.addRemote(fmt.Sprintf("late-%d", attempt), friendID, late)
		clusters.waitFor(wire.OnDemandEndpointPrefix + late.String())
		then := dropped()
		require.NoError(t, <-connected)
		entry, ok := r.datapath.Lookup(late)
		require.True(t, ok)
		require.EqualValues(t, friendID, entry.Identity)
		if dropped()-then <= 1 {
			return
		}
	}
	t.Errorf("in each of %d attempts more than one SYN was dropped after the pod was there", attempts)
}
