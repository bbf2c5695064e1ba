// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net/netip"
)

// The addresses of Nodes: the nodes' own, and the pod CIDRs of each.
var (
	HereIP  = netip.MustParseAddr("192.168.77.1")
	ThereIP = netip.MustParseAddr("192.168.77.2")
	// TherePods have two million IPv4 addresses.
	HerePods  = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}
	TherePods = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/11"), netip.MustParsePrefix("fd00:2::/64")}

	hereIPv6, thereIPv6 = netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd77::2")
	// hereInside and thereInside are what routes by the tunnel lead to. No packet has
	// them as its address.
	hereInside  = []netip.Addr{netip.MustParseAddr("192.168.78.1"), netip.MustParseAddr("fd78::1")}
	thereInside = []netip.Addr{netip.MustParseAddr("192.168.78.2"), netip.MustParseAddr("fd78::2")}
	// gateways are the host's addresses at the pods' devices.
	gateways = []netip.Prefix{netip.MustParsePrefix("10.1.0.1/32"), netip.MustParsePrefix("fe80::1/64")}
)

// The devices of both nodes by which they reach each other.
const (
	Uplink = "up0"
	Tunnel = "vx0"
)

// tunnelPort isn't vxlan's own.
const tunnelPort = 8477

// Nodes are two nodes that reach each other:
//
//	pod ── eth0  lxc… ── Here ── up0 (and vx0)  up0 (and vx0) ── There
//
// Here is the namespace of this process, where an agent runs that is to be tested, and
// its pods have namespaces of their own. There has the addresses of all its pods itself.
type Nodes struct {
	Here, There *Namespace
	tunnel      bool
	pods        []*Pod
}

// Connect makes both nodes. With a tunnel, pods reach each other by the tunnel devices,
// whose packets need an enforcer.Encapsulator; else by the uplinks, with their own
// addresses. This process must be one of Isolate.
func Connect(tunnel bool) (_ *Nodes, err error) {
	if !Isolated() {
		return nil, errors.New("this process isn't in namespaces of its own")
	}
	n := &Nodes{Here: Own(), tunnel: tunnel}
	if n.There, err = New(); err != nil {
		return nil, err
	}
	if err := n.connect(); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting two nodes: %w", err), n.Close())
	}
	return n, nil
}

func (n *Nodes) connect() error {
	if err := Pair(n.Here, Uplink, n.There, Uplink); err != nil {
		return err
	}
	sides := []struct {
		at, other *Namespace
		ips       []netip.Addr
		vias      []netip.Addr
		to        []netip.Prefix
	}{
		{n.Here, n.There, []netip.Addr{HereIP, hereIPv6}, []netip.Addr{ThereIP, thereIPv6}, TherePods},
		{n.There, n.Here, []netip.Addr{ThereIP, thereIPv6}, []netip.Addr{HereIP, hereIPv6}, HerePods},
	}
	if n.tunnel {
		// Both, before either needs the address of the other.
		for _, side := range sides {
			if err := side.at.Tunnel(Tunnel, tunnelPort); err != nil {
				return err
			}
		}
	}
	device := Uplink
	if n.tunnel {
		device, sides[0].vias, sides[1].vias = Tunnel, thereInside, hereInside
	}
	for _, side := range sides {
		mac, err := side.other.hardwareAddr(device)
		if err != nil {
			return err
		}
		for i, ip := range side.ips {
			bits := 24
			if ip.Is6() {
				bits = 64
			}
			// Nobody asks for a neighbour: packets that wait for the answer are lost
			// when they are many.
			err := errors.Join(
				side.at.Address(Uplink, netip.PrefixFrom(ip, bits)),
				side.at.Neighbor(device, side.vias[i], mac),
				side.at.Route(side.to[i], side.vias[i], device),
			)
			if err != nil {
				return err
			}
		}
	}
	for _, pods := range TherePods {
		if err := n.There.Have(pods); err != nil {
			return err
		}
	}
	return nil
}

// Pod is a pod of the node Here.
type Pod struct {
	*Namespace
	// Interface is the host's end of its veth pair, and Index that one's number.
	Interface string
	Index     int
	// Addrs are its addresses, in HerePods.
	Addrs []netip.Addr
}

// AddPod makes a pod. Its interface is "lxc" and the name.
func (n *Nodes) AddPod(name string, addrs ...netip.Addr) (*Pod, error) {
	ns, err := New()
	if err != nil {
		return nil, err
	}
	pod := &Pod{Namespace: ns, Interface: "lxc" + name, Addrs: addrs}
	n.pods = append(n.pods, pod)
	if err := n.connectPod(pod); err != nil {
		return nil, fmt.Errorf("connecting pod %s: %w", name, err)
	}
	return pod, nil
}

func (n *Nodes) connectPod(pod *Pod) (err error) {
	if err := Pair(n.Here, pod.Interface, pod.Namespace, "eth0"); err != nil {
		return err
	}
	if pod.Index, err = n.Here.Index(pod.Interface); err != nil {
		return err
	}
	host, err := n.Here.hardwareAddr(pod.Interface)
	if err != nil {
		return err
	}
	own, err := pod.hardwareAddr("eth0")
	if err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := n.Here.Address(pod.Interface, gateway); err != nil {
			return err
		}
	}
	for _, addr := range pod.Addrs {
		gateway, everywhere := gateways[0].Addr(), netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if addr.Is6() {
			gateway, everywhere = gateways[1].Addr(), netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		alone := netip.PrefixFrom(addr, addr.BitLen())
		err := errors.Join(
			pod.Address("eth0", alone),
			pod.Neighbor("eth0", gateway, host),
			pod.Route(everywhere, gateway, "eth0"),
			n.Here.Neighbor(pod.Interface, addr, own),
			n.Here.Route(alone, netip.Addr{}, pod.Interface),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// Close takes everything apart.
func (n *Nodes) Close() error {
	var errs []error
	devices := []string{Uplink}
	if n.tunnel {
		devices = append(devices, Tunnel)
	}
	for _, pod := range n.pods {
		devices = append(devices, pod.Interface)
	}
	for _, device := range devices {
		errs = append(errs, n.Here.Delete(device))
	}
	for _, pod := range n.pods {
		errs = append(errs, pod.Close())
	}
	return errors.Join(append(errs, n.There.Close())...)
}
