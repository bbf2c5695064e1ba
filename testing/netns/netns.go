// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package netns lays out nodes and pods in network namespaces of one process, for tests
// that send real packets.
//
//	netns.go    a namespace, and what is done in it
//	isolate.go  this program again, in namespaces of its own
//	links.go    veth pairs, tunnel devices, addresses and routes
//	nodes.go    two nodes with their pods, connected
//	traffic.go  who sends and who answers
//	require.go  tests that are skipped where they can't run
//	enforcer/   what drops packets
//
// Nothing of it is seen from outside: namespaces have no names, and end with the process
// that holds them however that ends, and their interfaces with them. It all needs root.
package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/cilium/pkg/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotPermitted says that this process may not make namespaces.
var ErrNotPermitted = errors.New("network namespaces need root (CAP_SYS_ADMIN)")

// Namespace is a network namespace. Its methods are safe for concurrent use, as far as
// the kernel's are.
type Namespace struct {
	ns *netns.NetNS // nil for Own
}

// New makes a namespace in which nothing is but its loopback device, which is up.
func New() (*Namespace, error) {
	ns, err := netns.New()
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	if err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	n := &Namespace{ns: ns}
	if err := n.Do(prepare); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Own is the namespace that this process is in.
func Own() *Namespace { return &Namespace{} }

// Do calls f by a thread that is in the namespace. Sockets that f opens itself, not by
// goroutines of its own, stay in it. f must not call runtime.LockOSThread.
func (n *Namespace) Do(f func() error) error {
	if n.ns == nil {
		return f()
	}
	return n.ns.Do(f)
}

// Close gives the namespace up. It ends when the last socket in it is closed.
func (n *Namespace) Close() error {
	if n.ns == nil {
		return nil
	}
	return n.ns.Close()
}

// fd is for the kernel, to move a device there.
func (n *Namespace) fd() (fd int, done func(), err error) {
	if n.ns != nil {
		return n.ns.FD(), func() {}, nil
	}
	own, err := netns.Current()
	if err != nil {
		return 0, nil, fmt.Errorf("opening this network namespace: %w", err)
	}
	return own.FD(), func() { own.Close() }, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bringing up the loopback device: %w", err)
	}
	return nil
}

// prepare makes a new namespace, that of the calling thread, usable at once: its addresses
// aren't probed for duplicates, and those of a whole prefix can be used (Have).
func prepare() error {
	return errors.Join(loopbackUp(), set("ipv6/conf/default/accept_dad", "0"), set("ipv6/ip_nonlocal_bind", "1"))
}

// forward has the namespace of the calling thread forward packets as a node does.
func forward() error {
	return errors.Join(set("ipv4/ip_forward", "1"), set("ipv6/conf/all/forwarding", "1"))
}

func set(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("setting net/%s: %w", name, err)
	}
	return nil
}
