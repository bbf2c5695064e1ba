// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/netns"
	"github.com/waggle-mesh/waggle/testing/netns/enforcer"
)

func TestMain(m *testing.M) {
	code, err := netns.Main(func() int {
		code := m.Run()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// patience is for what takes milliseconds, but on the busiest machine.
const patience = 2 * time.Minute

const (
	server   = 7777
	identity = 131_372
	stranger = 131_373
)

func connect(t *testing.T, tunnel bool) *netns.Nodes {
	netns.Require(t)
	nodes, err := netns.Connect(tunnel)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, nodes.Close()) })
	echo, err := nodes.There.Echo(server)
	require.NoError(t, err)
	t.Cleanup(echo.Close)
	return nodes
}

func addPod(t *testing.T, nodes *netns.Nodes, addrs ...string) *netns.Pod {
	var all []netip.Addr
	for _, addr := range addrs {
		all = append(all, netip.MustParseAddr(addr))
	}
	pod, err := nodes.AddPod("tst", all...)
	require.NoError(t, err)
	echo, err := pod.Echo(server)
	require.NoError(t, err)
	t.Cleanup(echo.Close)
	return pod
}

// openMap makes a real ipcache map, which stays open.
func openMap(t *testing.T) *ipcache.BPFMap {
	root := t.TempDir()
	m, err := ipcache.OpenBPF(hivetest.Logger(t), ipcache.BPFConfig{Root: root, Dir: "map", Capacity: 100})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Close())
		require.NoError(t, unix.Unmount(root, unix.MNT_DETACH))
	})
	return m
}

func put(t *testing.T, m *ipcache.BPFMap, addr netip.Addr, identity uint32) ipcache.Key {
	key, ok := ipcache.NewKey(netip.PrefixFrom(addr, addr.BitLen()))
	require.True(t, ok)
	require.Nil(t, m.Update([]ipcache.Entry{{Key: key, Value: ipcache.NewValue(identity, netip.Addr{}, 0, 0)}}))
	return key
}

// reaches says whether an address is reached, by a connection that carries something.
func reaches(t *testing.T, n *netns.Namespace, from, to netip.Addr, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	conn, err := n.Connect(ctx, from, netip.AddrPortFrom(to, server))
	if err != nil {
		var timeout interface{ Timeout() bool }
		require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "it is neither reached nor dropped: %v", err)
		return false
	}
	defer conn.Close()
	_, err = conn.Write([]byte("hum"))
	require.NoError(t, err)
	answer := make([]byte, 3)
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.Equal(t, "hum", string(answer))
	return true
}

// TestPodsReachEachOther is about the ground on which other tests stand: without an
// enforcer everything gets through.
func TestPodsReachEachOther(t *testing.T) {
	nodes := connect(t, false)
	pod := addPod(t, nodes, "10.1.0.5", "fd00:1::5")
	for i, there := range []string{"10.32.7.9", "fd00:2::7:9"} {
		to := netip.MustParseAddr(there)
		require.True(t, reaches(t, pod.Namespace, pod.Addrs[i], to, patience), "to %s", to)
		require.True(t, reaches(t, nodes.There, to, pod.Addrs[i], patience), "from %s", to)

		ping, err := pod.Ping(pod.Addrs[i], to)
		require.NoError(t, err)
		defer ping.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err = ping.Answered(ctx, 10*time.Second)
		require.NoError(t, err)
	}
}

// TestEnforcerEnforces: packets pass with an entry of an allowed identity, and are
// dropped without one or with another identity.
func TestEnforcerEnforces(t *testing.T) {
	for _, side := range []string{"destination", "source"} {
		t.Run(side, func(t *testing.T) {
			nodes := connect(t, false)
			pod := addPod(t, nodes, "10.1.0.5", "fd00:1::5")
			m := openMap(t)
			e := enforce(t, m)
			uplink, err := nodes.Here.Index(netns.Uplink)
			require.NoError(t, err)
			if side == "destination" {
				require.NoError(t, e.Destinations(pod.Index))
			} else {
				require.NoError(t, e.Sources(uplink))
			}
			for i, there := range []string{"10.32.7.9", "fd00:2::7:9"} {
				remote := netip.MustParseAddr(there)
				key := put(t, m, remote, identity)
				try := func(within time.Duration) bool {
					if side == "destination" {
						return reaches(t, pod.Namespace, pod.Addrs[i], remote, within)
					}
					return reaches(t, nodes.There, remote, pod.Addrs[i], within)
				}
				require.True(t, try(patience))
				requireDrops(t, e, func() { require.False(t, try(100*time.Millisecond)) }, func() { m.Delete([]ipcache.Key{key}) })
				requireDrops(t, e, func() { require.False(t, try(100*time.Millisecond)) }, func() { put(t, m, remote, stranger) })
				put(t, m, remote, identity)
				require.True(t, try(patience))
			}
		})
	}
}

// TestEnforcerEnforcesTunnel is the same by the identity in the tunnel header, whatever
// the map has.
func TestEnforcerEnforcesTunnel(t *testing.T) {
	nodes := connect(t, true)
	pod := addPod(t, nodes, "10.1.0.5", "fd00:1::5")
	e := enforce(t, openMap(t))
	tunnel, err := nodes.Here.Index(netns.Tunnel)
	require.NoError(t, err)
	require.NoError(t, e.TunnelSources(tunnel))
	encapsulate(t, nodes.Here, tunnel, netns.ThereIP)
	var there int
	there, err = nodes.There.Index(netns.Tunnel)
	require.NoError(t, err)
	sender := encapsulate(t, nodes.There, there, netns.HereIP)
	for i, addr := range []string{"10.32.7.9", "fd00:2::7:9"} {
		remote := netip.MustParseAddr(addr)
		require.NoError(t, sender.Sender(remote, identity))
		require.True(t, reaches(t, nodes.There, remote, pod.Addrs[i], patience))
		require.NoError(t, sender.Sender(remote, stranger))
		requireDrops(t, e, func() { require.False(t, reaches(t, nodes.There, remote, pod.Addrs[i], 100*time.Millisecond)) }, func() {})
	}
}

func enforce(t *testing.T, m *ipcache.BPFMap) *enforcer.Enforcer {
	e, err := enforcer.New(m.Path())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	require.NoError(t, e.Allow(identity))
	return e
}

func encapsulate(t *testing.T, n *netns.Namespace, ifindex int, to netip.Addr) (e *enforcer.Encapsulator) {
	require.NoError(t, n.Do(func() (err error) { e, err = enforcer.Encapsulate(ifindex, to); return err }))
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// requireDrops expects that after a change packets are dropped, and only those: what
// isn't reached could be so for another reason.
func requireDrops(t *testing.T, e *enforcer.Enforcer, try, change func()) {
	t.Helper()
	change()
	_, before, err := e.Verdicts()
	require.NoError(t, err)
	try()
	_, after, err := e.Verdicts()
	require.NoError(t, err)
	require.Greater(t, after, before)
}

// TestScanSendsEverything: each packet of a scan leaves the pod. How many are looked at
// isn't certain: the kernel drops what comes faster than a processor takes it in.
func TestScanSendsEverything(t *testing.T) {
	const count = 5000
	nodes := connect(t, false)
	pod := addPod(t, nodes, "10.1.0.5")
	e := enforce(t, openMap(t))
	require.NoError(t, e.Destinations(pod.Index))
	socket, err := pod.UDP(netip.AddrPortFrom(pod.Addrs[0], 0))
	require.NoError(t, err)
	defer socket.Close()
	sent := func() (n uint64) {
		require.NoError(t, pod.Do(func() error {
			device, err := netlink.LinkByName("eth0")
			if err == nil {
				stats := device.Attrs().Statistics
				n = stats.TxPackets + stats.TxDropped
			}
			return err
		}))
		return n
	}
	before := sent()
	require.NoError(t, netns.Scan(socket, netip.MustParseAddrPort("10.40.0.0:9"), count))
	require.GreaterOrEqual(t, sent(), before+count)
	require.Eventually(t, func() bool {
		_, dropped, err := e.Verdicts()
		return err == nil && dropped > 0
	}, patience, time.Millisecond)
	_, dropped, err := e.Verdicts()
	require.NoError(t, err)
	require.LessOrEqual(t, dropped, uint64(count))
}
