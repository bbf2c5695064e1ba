// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/testing/netns"
)

var (
	remotes   = []netip.Addr{netip.MustParseAddr("10.32.7.9"), netip.MustParseAddr("fd00:2::7:9")}
	friendIDs = []uint32{friendID, otherFriendID}
	strangers = []netip.Addr{netip.MustParseAddr("10.32.7.10"), netip.MustParseAddr("fd00:2::7:a")}
)

// TestReached sends packets between pods of which the one that is there has opted out of
// being pushed, so that no map has it. With on-demand resolution the connection comes
// about that the first packets were dropped of, and without it the same packets are all
// dropped.
func TestReached(t *testing.T) {
	for _, through := range []bool{false, true} {
		name := "direct"
		if through {
			name = "read-through"
		}
		t.Run(name, func(t *testing.T) {
			clusters := newWorld(t, through)
			for _, w := range []way{
				{side: bpf.SideDestination},
				{side: bpf.SideDestination, off: true},
				{side: bpf.SideSource},
				{side: bpf.SideSource, off: true},
				{side: bpf.SideSource, tunnel: true},
				{side: bpf.SideSource, tunnel: true, off: true},
			} {
				t.Run(w.String(), func(t *testing.T) { testReached(t, clusters, w) })
			}
		})
	}
}

func testReached(t *testing.T, clusters *world, w way) {
	r := newRig(t, clusters, w)
	r.start()
	pod := r.addPod("a", 5)
	for i := range remotes {
		r.requireReached(pod, i, remotes[i], !w.off)
		r.requireReached(pod, i, strangers[i], false)
	}
	if w.off {
		require.Zero(t, r.rows.NumObjects(r.db.ReadTxn()))
		return
	}
	from := "local"
	if r.through {
		from = "read-through"
	}
	require.Positive(t, r.metric("waggle_ondemand_misses_total", "side", w.side.String(), "outcome", from))
}

// enough is how many packets have to be dropped to say that nothing gets through.
const enough = 300

// requireReached has a pod and a remote address meet, by the protocols that there are,
// and expects that they get through in the end, but not at once; or never.
func (r *rig) requireReached(pod *netns.Pod, family int, remote netip.Addr, reached bool) {
	r.t.Helper()
	_, before, err := r.enforcer.Verdicts()
	require.NoError(r.t, err)
	for _, protocol := range []func(context.Context, *netns.Namespace, netip.Addr, netip.Addr) error{r.connectTCP, r.ping} {
		require.Equal(r.t, reached, r.reach(protocol, pod, family, remote), "%s", remote)
	}
	_, after, err := r.enforcer.Verdicts()
	require.NoError(r.t, err)
	require.Greater(r.t, after, before, "packets were dropped until %s was known", remote)
	entry, ok := r.datapath.Lookup(remote)
	require.True(r.t, ok)
	if reached {
		require.Equal(r.t, friendIDs[family], entry.Identity)
		row, ok := r.row(remote)
		require.True(r.t, ok)
		require.Equal(r.t, friendIDs[family], row.Identity)
	} else if !r.off {
		require.EqualValues(r.t, strangerID, entry.Identity)
	}
}

// reach says whether an attempt gets through. It is made once, and what it sends is sent
// again by who makes it. Another sender makes sure that there are enough packets: when
// so many were dropped, it is given up.
func (r *rig) reach(try func(context.Context, *netns.Namespace, netip.Addr, netip.Addr) error, pod *netns.Pod, family int, remote netip.Addr) bool {
	r.t.Helper()
	sender, from, to := pod.Namespace, pod.Addrs[family], remote
	if r.side == bpf.SideSource {
		sender, from, to = r.nodes.There, remote, pod.Addrs[family]
	}
	_, before, err := r.enforcer.Verdicts()
	require.NoError(r.t, err)
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- try(ctx, sender, from, to) }()

	others, err := sender.UDP(netip.AddrPortFrom(from, 0))
	require.NoError(r.t, err)
	defer others.Close()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			require.NoError(r.t, err)
			return true
		case <-ticker.C:
		}
		_, dropped, err := r.enforcer.Verdicts()
		require.NoError(r.t, err)
		if dropped-before >= enough && !r.expected(remote) {
			cancel()
			require.Error(r.t, <-done)
			return false
		}
		_, err = others.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(to, port))
		require.NoError(r.t, err)
	}
}

// expected says whether an address is to be reached at all, however long it takes.
func (r *rig) expected(remote netip.Addr) bool {
	return !r.off && (remote == remotes[0] || remote == remotes[1])
}

// connectTCP makes one connection and has it carry something.
func (r *rig) connectTCP(ctx context.Context, n *netns.Namespace, from, to netip.Addr) error {
	conn, err := n.Connect(ctx, from, netip.AddrPortFrom(to, port))
	if err != nil {
		return err
	}
	defer conn.Close()
	return echoed(conn)
}

// echoed sends something over a connection and waits for the answer.
func echoed(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hum")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 3))
	return err
}

// ping pings until there is an answer.
func (r *rig) ping(ctx context.Context, n *netns.Namespace, from, to netip.Addr) error {
	ping, err := n.Ping(from, to)
	if err != nil {
		return err
	}
	defer ping.Close()
	_, err = ping.Answered(ctx, 20*time.Millisecond)
	return err
}
