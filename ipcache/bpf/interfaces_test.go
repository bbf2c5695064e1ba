// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// reports keeps the last thing that was said of health.
type reports struct {
	cell.Health
	mu     sync.Mutex
	status string
	err    error
}

func (r *reports) OK(status string)                  { r.set(status, nil) }
func (r *reports) Degraded(status string, err error) { r.set(status, err) }
func (r *reports) set(status string, err error) {
	r.mu.Lock()
	r.status, r.err = status, err
	r.mu.Unlock()
}
func (r *reports) last() (status string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.err
}

// follow runs an Interfaces until the test ends or the returned function is called.
func (f *fixture) follow(t testing.TB, i *Interfaces) (*reports, func()) {
	t.Helper()
	health := &reports{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- i.Run(ctx, health) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return health, stop
}

func (f *fixture) interfaces(t testing.TB, pods, devices Patterns) *Interfaces {
	i := NewInterfaces(hivetest.Logger(t), f.Kernel, pods, devices)
	i.retry = 10 * time.Millisecond
	return i
}

// attached waits until there are programs on just these interfaces.
func (f *fixture) attached(t testing.TB, want map[int]Kind) {
	t.Helper()
	require.Eventually(t, func() bool { return maps.Equal(want, f.kinds()) }, patience, 5*time.Millisecond,
		"want %v", want)
}

func addLink(t testing.TB, device netlink.Link) int {
	t.Helper()
	require.NoError(t, netlink.LinkAdd(device))
	return ifindex(t, device.Attrs().Name)
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func rename(t testing.TB, index int, name string) {
	t.Helper()
	device, err := netlink.LinkByIndex(index)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetDown(device))
	require.NoError(t, netlink.LinkSetName(device, name))
	require.NoError(t, netlink.LinkSetUp(device))
}

func remove(t testing.TB, index int) {
	t.Helper()
	device, err := netlink.LinkByIndex(index)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkDel(device))
}

func TestInterfacesComeAndGo(t *testing.T) {
	ns := inNamespace(t)
	f := newFixture(t, func(cfg *Config) { cfg.NetNS = ns })
	require.NoError(t, f.SetCIDRs(cidrs()))

	// Some are there already.
	first := addVeth(t, "lxc1", "pod1")
	uplink := addVeth(t, "eth0.1", "wire")
	tunnel := addLink(t, &netlink.Vxlan{LinkAttrs: named("cilium_vxlan"), FlowBased: true, Port: 8472})
	// A tunnel with one peer has no identity in its header.
	fixed := addLink(t, &netlink.Vxlan{LinkAttrs: named("vxlan7"), VxlanId: 7, Port: 4789})
	addVeth(t, "other", "otherpeer")

	health, stop := f.follow(t, f.interfaces(t, Patterns{"lxc+"}, Patterns{"eth0.1", "cilium_vxlan", "vxlan+", "lxc+"}))
	want := map[int]Kind{first: KindPod, uplink: KindUplink, tunnel: KindTunnel, fixed: KindUplink}
	f.attached(t, want)
	require.Eventually(t, func() bool {
		status, err := health.last()
		return err == nil && status == "On 1 pods' interfaces, 2 uplinks, 1 tunnels"
	}, patience, time.Millisecond)

	second := addVeth(t, "lxc2", "pod2")
	want[second] = KindPod
	f.attached(t, want)
	before := f.stats(t)
	send(t, ifindex(t, "pod2"), frame("10.1.0.1", "10.7.0.9"))
	f.seen(t, before, 1)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.9")}, addrs(f.signals(t)))

	// A renamed one is another one.
	rename(t, second, "spare2")
	delete(want, second)
	f.attached(t, want)
	rename(t, second, "lxc2")
	want[second] = KindPod
	f.attached(t, want)
	rename(t, uplink, "lxc3")
	want[uplink] = KindPod
	f.attached(t, want)

	// To leave a bridge is no end.
	same := linkID(t, f, first)
	bridge := addLink(t, &netlink.Bridge{LinkAttrs: named("br0")})
	device, err := netlink.LinkByIndex(first)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetMasterByIndex(device, bridge))
	require.NoError(t, netlink.LinkSetNoMaster(device))

	remove(t, second)
	delete(want, second)
	f.attached(t, want)
	require.Equal(t, same, linkID(t, f, first))

	// An index that another interface gets.
	again := &netlink.Veth{LinkAttrs: named("lxc2"), PeerName: "pod2"}
	again.Index = second
	require.NoError(t, netlink.LinkAdd(again))
	want[second] = KindPod
	f.attached(t, want)
	for _, name := range []string{"lxc2", "pod2"} {
		device, err := netlink.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(device))
	}
	before = f.stats(t)
	send(t, ifindex(t, "pod2"), frame("10.1.0.1", "10.7.0.10"))
	f.seen(t, before, 1)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.10")}, addrs(f.signals(t)))

	// What changes while nobody looks is found by the next one.
	stop()
	remove(t, second)
	reused := &netlink.Veth{LinkAttrs: named("lxc9"), PeerName: "pod9"}
	reused.Index = second
	require.NoError(t, netlink.LinkAdd(reused))
	remove(t, tunnel)
	delete(want, tunnel)
	third := addVeth(t, "lxc4", "pod4")
	want[third] = KindPod
	f.follow(t, f.interfaces(t, Patterns{"lxc+"}, Patterns{"eth0.1", "cilium_vxlan"}))
	delete(want, fixed)
	f.attached(t, want)
	wait(t, func() bool { return len(chain(t, second)) == 1 }, "a program on the new interface")
}

func TestInterfacesThatComeAndGoQuickly(t *testing.T) {
	ns := inNamespace(t)
	f := newFixture(t, func(cfg *Config) { cfg.NetNS = ns })
	health, _ := f.follow(t, f.interfaces(t, Patterns{"lxc+"}, nil))
	for i := range 50 {
		name := fmt.Sprintf("lxc%d", i)
		index := addLink(t, &netlink.Veth{LinkAttrs: named(name), PeerName: "peer" + name})
		if i%5 != 0 {
			remove(t, index)
		}
	}
	want := map[int]Kind{}
	for i := 0; i < 50; i += 5 {
		want[ifindex(t, fmt.Sprintf("lxc%d", i))] = KindPod
	}
	f.attached(t, want)
	require.Eventually(t, func() bool {
		status, err := health.last()
		return status == "On 10 pods' interfaces, 0 uplinks, 0 tunnels" && err == nil
	},
		patience, time.Millisecond)
}

// TestInterfacesWithoutNews loses what the kernel says of one interface, as netlink does
// with a message that it can't read: it says so, and goes on with the next one.
func TestInterfacesWithoutNews(t *testing.T) {
	ns := inNamespace(t)
	f := newFixture(t, func(cfg *Config) { cfg.NetNS = ns })
	gone, stays := addVeth(t, "lxc1", "pod1"), addVeth(t, "lxc2", "pod2")
	i := f.interfaces(t, Patterns{"lxc+"}, nil)
	i.retry = time.Hour // nothing else makes it look again
	real := i.subscribe
	i.subscribe = func(updates chan<- netlink.LinkUpdate, done <-chan struct{}, options netlink.LinkSubscribeOptions) error {
		all := make(chan netlink.LinkUpdate)
		if err := real(all, done, options); err != nil {
			return err
		}
		go func() {
			defer close(updates)
			for update := range all {
				if name := update.Attrs().Name; name == "lxc1" || name == "lxc3" {
					options.ErrorCallback(errors.New("it can't be read"))
					continue
				}
				updates <- update
			}
		}()
		return nil
	}
	health, stop := f.follow(t, i)
	f.attached(t, map[int]Kind{gone: KindPod, stays: KindPod})
	require.Eventually(t, func() bool { status, _ := health.last(); return status != "" }, patience, time.Millisecond)

	remove(t, gone)
	f.attached(t, map[int]Kind{stays: KindPod})
	late := addVeth(t, "lxc3", "pod3")
	f.attached(t, map[int]Kind{stays: KindPod, late: KindPod})
	_, err := health.last()
	require.NoError(t, err)
	stop()
}

func TestKindsOfInterfaces(t *testing.T) {
	i := NewInterfaces(hivetest.Logger(t), nil, Patterns{"lxc+"}, Patterns{"+"})
	for kind, devices := range map[Kind][]netlink.Link{
		KindPod: {&netlink.Veth{LinkAttrs: named("lxc1")}, &netlink.Vxlan{LinkAttrs: named("lxc2"), FlowBased: true}},
		KindTunnel: {
			&netlink.Vxlan{LinkAttrs: named("cilium_vxlan"), FlowBased: true},
			&netlink.Geneve{LinkAttrs: named("cilium_geneve"), FlowBased: true},
		},
		KindUplink: {
			&netlink.Device{LinkAttrs: named("eth0")},
			&netlink.Vxlan{LinkAttrs: named("vxlan7"), VxlanId: 7},
			&netlink.Geneve{LinkAttrs: named("geneve7"), ID: 7},
			&netlink.Wireguard{LinkAttrs: named("cilium_wg0")},
		},
	} {
		for _, device := range devices {
			got, ok := i.kindOf(device)
			require.True(t, ok)
			require.Equal(t, kind, got, device.Attrs().Name)
		}
	}
	loopback := named("lo")
	loopback.Flags = net.FlagLoopback
	for _, i := range []*Interfaces{i, NewInterfaces(hivetest.Logger(t), nil, Patterns{"+"}, Patterns{"lo"})} {
		_, ok := i.kindOf(&netlink.Device{LinkAttrs: loopback})
		require.False(t, ok, "whatever selects it")
	}
	_, err := isRaw(&netlink.Netkit{LinkAttrs: named("lxc1")})
	require.ErrorContains(t, err, "interface lxc1 is a netkit device")
}

// TestInterfaceThatCantBeAttachedTo has an interface with as many programs as the
// kernel takes.
func TestInterfaceThatCantBeAttachedTo(t *testing.T) {
	ns := inNamespace(t)
	f := newFixture(t, func(cfg *Config) { cfg.NetNS = ns })
	full, free := addVeth(t, "lxc1", "pod1"), addVeth(t, "lxc2", "pod2")
	var last link.Link
	for {
		l, err := link.AttachTCX(link.TCXOptions{Interface: full, Program: passing(t), Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, unix.ERANGE) {
			break
		}
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		last = l
	}

	health, _ := f.follow(t, f.interfaces(t, Patterns{"lxc+"}, nil))
	f.attached(t, map[int]Kind{free: KindPod})
	require.Eventually(t, func() bool { _, err := health.last(); return err != nil }, patience, time.Millisecond)
	_, err := health.last()
	require.ErrorContains(t, err, "interface lxc1")

	// It is tried again.
	require.NoError(t, last.Close())
	f.attached(t, map[int]Kind{free: KindPod, full: KindPod})
	require.Eventually(t, func() bool { _, err := health.last(); return err == nil }, patience, time.Millisecond)
}

// passing is a program that does nothing.
func passing(t testing.TB) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()},
		License:      "MIT",
	})
	require.NoError(t, err)
	t.Cleanup(func() { program.Close() })
	return program
}

func TestPatterns(t *testing.T) {
	patterns := Patterns{"lxc+", "eth0", "cilium_vxlan"}
	require.NoError(t, patterns.Validate())
	for name, want := range map[string]bool{
		"lxc": true, "lxc123": true, "lx": false, "mylxc1": false, "eth0": true, "eth01": false, "cilium_vxlan": true, "": false,
	} {
		require.Equal(t, want, patterns.match(name), name)
	}
	require.True(t, Patterns{"+"}.match("anything"))
	require.False(t, Patterns{}.match("lxc1"))
	for _, bad := range []string{"", "a+b", "a b", "a/b", "abcdefghijklmnop", "lxc++", "lxc*", "eth[01]", "eth?", "eth0:1", "."} {
		require.ErrorContains(t, Patterns{"ok", bad}.Validate(), fmt.Sprintf("%.5s", bad), bad)
	}
}
