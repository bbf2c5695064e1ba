// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// inNamespace has the rest of the test run in a network namespace of its own, which
// goes with it: the thread that has it ends with the test's goroutine. It gives the
// namespace's file.
func inNamespace(t testing.TB) string {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			skip.Lacking(t, errors.New("a network namespace needs CAP_SYS_ADMIN"))
		}
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	// New interfaces have no IPv6 of their own, so that only the test sends packets.
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644))
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
}

// addVeth makes a pair of interfaces, both up, and gives the index of the first.
func addVeth(t testing.TB, name, peer string) int {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
	for _, each := range []string{peer, name} {
		device, err := netlink.LinkByName(each)
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(device))
	}
	return ifindex(t, name)
}

func ifindex(t testing.TB, name string) int {
	t.Helper()
	device, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return device.Attrs().Index
}

// send puts a frame onto an interface, as if its owner had sent it.
func send(t testing.TB, ifindex int, frame []byte) {
	t.Helper()
	put, done := sender(t, ifindex)
	defer done()
	put(frame)
}

// sender is send for many frames: to close its socket takes the kernel milliseconds.
func sender(t testing.TB, ifindex int) (put func(frame []byte), done func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	require.NoError(t, err)
	return func(frame []byte) {
			to := &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6}
			copy(to.Addr[:], frame[:6])
			require.NoError(t, unix.Sendto(fd, frame, 0, to))
		}, func() {
			require.NoError(t, unix.Close(fd))
		}
}

func addrs(misses []Miss) (all []netip.Addr) {
	for _, miss := range misses {
		all = append(all, miss.Addr)
	}
	return all
}
