// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair makes a veth pair with one end in each of two namespaces, both up.
func Pair(a *Namespace, nameA string, b *Namespace, nameB string) error {
	fd, done, err := b.fd()
	if err != nil {
		return err
	}
	defer done()
	err = a.onLink(nameA, func() (netlink.Link, error) {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(fd)}
		return pair, netlink.LinkAdd(pair)
	}, netlink.LinkSetUp)
	if err != nil {
		return err
	}
	return b.link(nameB, netlink.LinkSetUp)
}

// Tunnel makes a vxlan device that takes its parameters from each packet.
func (n *Namespace) Tunnel(name string, port int) error {
	return n.onLink(name, func() (netlink.Link, error) {
		tunnel := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, FlowBased: true, Learning: false, Port: port}
		return tunnel, netlink.LinkAdd(tunnel)
	}, netlink.LinkSetUp)
}

// Delete deletes a device, and with one end of a pair the other.
func (n *Namespace) Delete(name string) error { return n.link(name, netlink.LinkDel) }

// Index is the number of a device.
func (n *Namespace) Index(name string) (index int, err error) {
	err = n.link(name, func(l netlink.Link) error { index = l.Attrs().Index; return nil })
	return index, err
}

// hardwareAddr is the MAC address of a device.
func (n *Namespace) hardwareAddr(name string) (addr net.HardwareAddr, err error) {
	err = n.link(name, func(l netlink.Link) error { addr = l.Attrs().HardwareAddr; return nil })
	return addr, err
}

// Address gives a device an address, which can be used at once.
func (n *Namespace) Address(name string, addr netip.Prefix) error {
	return n.link(name, func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD})
	})
}

// Route sends a prefix to a device, by way of a neighbour there unless that is the zero
// address. The neighbour needs no route of its own.
func (n *Namespace) Route(to netip.Prefix, via netip.Addr, name string) error {
	return n.link(name, func(l netlink.Link) error {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to)}
		if via.IsValid() {
			route.Gw, route.Flags = via.AsSlice(), unix.RTNH_F_ONLINK
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteReplace(route)
	})
}

// Drop has the namespace drop what it would forward to a prefix.
func (n *Namespace) Drop(to netip.Prefix) error {
	return n.Do(func() error {
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Type: unix.RTN_BLACKHOLE}); err != nil {
			return fmt.Errorf("dropping what goes to %s: %w", to, err)
		}
		return nil
	})
}

// Have has the namespace take all addresses of a prefix for its own.
func (n *Namespace) Have(all netip.Prefix) error {
	return n.link("lo", func(lo netlink.Link) error {
		return netlink.RouteReplace(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: ipNet(all), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST,
		})
	})
}

// Neighbor says which MAC address an address behind a device has.
func (n *Namespace) Neighbor(name string, addr netip.Addr, mac net.HardwareAddr) error {
	return n.link(name, func(l netlink.Link) error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
		})
	})
}

// link does something with a device.
func (n *Namespace) link(name string, do func(netlink.Link) error) error {
	return n.onLink(name, func() (netlink.Link, error) { return netlink.LinkByName(name) }, do)
}

func (n *Namespace) onLink(name string, get func() (netlink.Link, error), do func(netlink.Link) error) error {
	err := n.Do(func() error {
		l, err := get()
		if err != nil {
			return err
		}
		return do(l)
	})
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
