// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// Cluster 7 has the addresses below 10.7.0.0/16 and fd00:7::/32.
func cidrs() map[netip.Prefix]uint32 {
	return map[netip.Prefix]uint32{
		netip.MustParsePrefix("10.7.0.0/16"): 7,
		netip.MustParsePrefix("fd00:7::/32"): 7,
	}
}

// monotonic is the clock that signals have.
func monotonic(t testing.TB) time.Duration {
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return time.Duration(now.Nano())
}

func TestPackets(t *testing.T) {
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	// As upstream fills it: everything is the world, and so are pod CIDRs, of which a
	// node with both families has numbers of their own.
	for prefix, identity := range map[string]uint32{
		"0.0.0.0/0": 2, "::/0": 2,
		"10.7.0.0/24": 2, "10.7.1.0/24": 9, "fd00:7:0:2::/64": 10,
		"10.7.3.0/24": 0x01000005, "fd00:7:0:3::/64": 0x01ffffff,
		"10.7.0.1/32": 458753, "fd00:7::1/128": 458754,
		// Nodes and health endpoints are known too.
		"10.7.0.2/32": 6, "10.7.0.3/32": 4,
		// Local identities of nodes, which aren't of the world.
		"10.7.4.0/24": 0x02000001,
	} {
		f.upsert(t, prefix, identity)
	}
	const hit, miss, other = "hit", "miss", "other"
	for _, test := range []struct {
		name, addr, want string
	}{
		{"IPv4, known", "10.7.0.1", hit},
		{"IPv6, known", "fd00:7::1", hit},
		{"a remote node", "10.7.0.2", hit},
		{"a health endpoint", "10.7.0.3", hit},
		{"a node's local identity", "10.7.4.1", hit},
		{"IPv4, world", "10.7.0.9", miss},
		{"IPv4, world IPv4", "10.7.1.9", miss},
		{"IPv6, world IPv6", "fd00:7:0:2::9", miss},
		{"IPv4, identity of a CIDR", "10.7.3.9", miss},
		{"IPv6, identity of a CIDR", "fd00:7:0:3::9", miss},
		{"IPv4, only the entry of everything", "10.7.200.9", miss},
		{"IPv6, only the entry of everything", "fd00:7:0:200::9", miss},
		{"IPv4, elsewhere", "10.8.0.1", other},
		{"IPv4, outside", "8.8.8.8", other},
		{"IPv6, elsewhere", "fd00:8::1", other},
	} {
		for _, side := range []Side{SideDestination, SideSource} {
			t.Run(test.name+", "+side.String(), func(t *testing.T) {
				src, dst, program := "10.1.0.1", test.addr, f.programs.ethernet.Pod
				if netip.MustParseAddr(test.addr).Is6() {
					src = "fd00:1::1"
				}
				if side == SideSource {
					src, dst, program = dst, src, f.programs.ethernet.Uplink
				}
				before, began := f.stats(t), monotonic(t)
				f.run(t, program, frame(src, dst))
				after, ended := f.stats(t), monotonic(t)

				want := before
				switch test.want {
				case hit:
					want.Hits++
				case other:
					want.Others++
				case miss:
					want.Misses++
					if side == SideDestination {
						want.Signals++
					} else {
						// It was told of with the other side.
						want.Repeated++
					}
				}
				require.Equal(t, want, after)
				signals := f.signals(t)
				if want.Signals == before.Signals {
					require.Empty(t, signals)
					return
				}
				require.Len(t, signals, 1)
				require.GreaterOrEqual(t, signals[0].Time, began)
				require.LessOrEqual(t, signals[0].Time, ended)
				signals[0].Time = 0
				require.Equal(t, Miss{
					Addr: netip.MustParseAddr(test.addr), ClusterID: 7, Side: side, Interface: 1,
				}, signals[0])
			})
		}
	}
}

// TestFrames are packets that aren't as simple.
func TestFrames(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	wanted := cidrs()
	wanted[netip.MustParsePrefix("::/64")] = 7 // where IPv4 would be in disguise
	require.NoError(t, f.SetCIDRs(wanted))
	// Test runs of the kernel's refuse what ends within the IP header.
	require.NoError(t, f.attach(addVeth(t, "lxc1", "pod1"), KindPod))
	pod := ifindex(t, "pod1")
	v4, v6 := packet("10.1.0.1", "10.7.0.9"), packet("fd00:1::1", "fd00:7::9")

	// The second fragment has no UDP header, but addresses; IPv6 says so in a header of
	// its own.
	fragment4 := append(slices.Clone(v4[:20]), make([]byte, 100)...)
	fragment4[6], fragment4[7] = 0x20, 0xb9
	fragment6 := slices.Concat(v6[:40], []byte{17, 0, 0x05, 0xc8, 0, 0, 0, 1}, make([]byte, 100))
	fragment6[6] = 44
	// Options of IPv4 come after the addresses, and headers of IPv6 as well.
	options := slices.Concat(v4[:20], make([]byte, 40), v4[20:])
	options[0] = 0x4f
	hopByHop := slices.Concat(v6[:40], []byte{17, 0, 1, 4, 0, 0, 0, 0}, v6[40:])
	hopByHop[6] = 0
	vlan := slices.Concat([]byte{0, 100, etherIPv4 >> 8, etherIPv4 & 0xff}, v4)
	vlans := slices.Concat([]byte{0, 100, etherVLAN >> 8, etherVLAN & 0xff}, vlan)

	for _, test := range []struct {
		name  string
		frame []byte
		miss  string // the address
	}{
		{"IPv4", ethernet(etherIPv4, v4), "10.7.0.9"},
		{"IPv6", ethernet(etherIPv6, v6), "fd00:7::9"},
		{"fragment of IPv4", ethernet(etherIPv4, fragment4), "10.7.0.9"},
		{"fragment of IPv6", ethernet(etherIPv6, fragment6), "fd00:7::9"},
		{"options of IPv4", ethernet(etherIPv4, options), "10.7.0.9"},
		{"a header of IPv6", ethernet(etherIPv6, hopByHop), "fd00:7::9"},
		{"IPv4's header alone", ethernet(etherIPv4, v4[:20]), "10.7.0.9"},
		{"IPv6's header alone", ethernet(etherIPv6, v6[:40]), "fd00:7::9"},
		{"IPv4 in disguise", ethernet(etherIPv6, packetIPv6("fd00:1::1", "::ffff:10.7.0.9")), ""},
		{"less than IPv4's header", ethernet(etherIPv4, v4[:19]), ""},
		{"less than IPv6's header", ethernet(etherIPv6, v6[:39]), ""},
		{"next to nothing", ethernet(etherIPv4, []byte{0x45}), ""},
		{"ARP", ethernet(etherARP, v4), ""},
		{"a VLAN's tag, which the kernel takes off before", ethernet(etherVLAN, vlan), "10.7.0.9"},
		{"two VLANs' tags", ethernet(etherVLAN, vlans), ""},
	} {
		before := f.stats(t)
		send(t, pod, test.frame)
		f.seen(t, before, 1)
		after := f.stats(t)
		if test.miss == "" {
			before.Others++
			require.Equal(t, before, after, test.name)
			continue
		}
		require.Equal(t, before.Misses+1, after.Misses, test.name)
		if signals := f.signals(t); len(signals) > 0 {
			require.Equal(t, netip.MustParseAddr(test.miss), signals[0].Addr, test.name)
		} else {
			require.Equal(t, before.Repeated+1, after.Repeated, test.name)
		}
	}
}

// FuzzFrames: whatever comes, every program lets it go on and counts it once.
func FuzzFrames(f *testing.F) {
	fixture := newFixture(f, nil)
	require.NoError(f, fixture.SetCIDRs(map[netip.Prefix]uint32{
		netip.MustParsePrefix("0.0.0.0/0"): 1, netip.MustParsePrefix("::/0"): 2,
	}))
	fixture.upsert(f, "10.0.0.0/8", 458753)
	fixture.upsert(f, "fd00::/8", 458754)
	for _, pair := range [][2]string{{"10.1.0.1", "10.7.0.9"}, {"192.0.2.1", "192.0.2.2"}, {"fd00:1::1", "fd00:7::9"}, {"2001:db8::1", "2001:db8::2"}} {
		whole := frame(pair[0], pair[1])
		for _, length := range []int{14, 20, 33, 34, 53, 54, len(whole)} {
			f.Add(whole[:min(length, len(whole))])
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if _, err := fixture.programs.ethernet.Pod.Run(&ebpf.RunOptions{Data: frame}); errors.Is(err, unix.EINVAL) {
			return // the kernel runs no program over this: it is too short
		}
		for _, variant := range []variant{fixture.programs.ethernet, fixture.programs.raw} {
			for _, program := range []*ebpf.Program{variant.Pod, variant.Uplink, variant.Tunnel} {
				before := fixture.stats(t)
				fixture.run(t, program, frame)
				after := fixture.stats(t)
				require.Equal(t, before.Hits+before.Misses+before.Others+1, after.Hits+after.Misses+after.Others)
			}
		}
	})
}

// TestBigFrameOutsideOfTheLinearPart has headers that can't be read directly.
func TestBigFrameOutsideOfTheLinearPart(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	lxc := addVeth(t, "lxc1", "pod1")
	for _, name := range []string{"lxc1", "pod1"} {
		device, err := netlink.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetMTU(device, 9000))
	}
	require.NoError(t, f.attach(lxc, KindPod))
	for _, dst := range []string{"10.7.0.9", "fd00:7::9"} {
		src := "10.1.0.1"
		if netip.MustParseAddr(dst).Is6() {
			src = "fd00:1::1"
		}
		before := f.stats(t)
		sendFragmented(t, ifindex(t, "pod1"), append(frame(src, dst), make([]byte, 8000)...))
		f.seen(t, before, 1)
		require.Equal(t, []netip.Addr{netip.MustParseAddr(dst)}, addrs(f.signals(t)))
	}
}

// sendFragmented puts a frame onto an interface of which only the Ethernet header is in
// the linear part: that is what the header before it asks for.
func sendFragmented(t testing.TB, ifindex int, frame []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	to := &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6}
	copy(to.Addr[:], frame[:6])
	require.NoError(t, unix.Sendto(fd, append(virtioHeader(14), frame...), 0, to))
}

// TestDeviceWithoutEthernet has packets that begin with the IP header, in the linear part
// and behind it.
func TestDeviceWithoutEthernet(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	tun := &netlink.Tuntap{
		LinkAttrs: named("tun0"),
		Mode:      netlink.TUNTAP_MODE_TUN,
		Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		Queues:    1,
	}
	if err := netlink.LinkAdd(tun); err != nil {
		skip.Lacking(t, fmt.Errorf("making a tun device: %w", err))
	}
	defer tun.Fds[0].Close()
	require.NoError(t, netlink.LinkSetMTU(tun, 9000))
	require.NoError(t, netlink.LinkSetUp(tun))
	for _, kind := range []Kind{KindPod, KindUplink, KindTunnel} {
		require.NoError(t, f.attach(tun.Index, kind))
		for i, linear := range []int{0, 1} {
			before := f.stats(t)
			remotes := []netip.Addr{
				netip.MustParseAddr(fmt.Sprintf("10.7.%d.%d", i, kind)), netip.MustParseAddr(fmt.Sprintf("fd00:7:%d::%d", i, kind)),
			}
			for n, local := range []string{"10.1.0.1", "fd00:1::1"} {
				from, to := local, remotes[n].String()
				if kind != KindPod {
					from, to = to, from
				}
				message := append(virtioHeader(linear), packet(from, to)...)
				if linear != 0 {
					message = append(message, make([]byte, 8000)...)
				}
				_, err := tun.Fds[0].Write(message)
				require.NoError(t, err)
			}
			f.seen(t, before, 2)
			require.Equal(t, remotes, addrs(f.signals(t)), "%s, linear part of %d", kind, linear)
		}
	}
}

// virtioHeader has the kernel make a large packet with a linear part of so many bytes; 0
// leaves it to the kernel.
func virtioHeader(linear int) []byte {
	header := make([]byte, 10)
	binary.NativeEndian.PutUint16(header[2:], uint16(linear))
	return header
}
