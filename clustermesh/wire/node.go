// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/cilium/pkg/cidr"
	"github.com/cilium/cilium/pkg/node/addressing"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
)

// MarshalNode gives the value of a node, byte for byte what upstream's
// node/types.Node.Marshal gives for the same data. Its key, below the cluster's
// prefix, is the node's name. It doesn't fail for a Node whose addresses and
// prefixes are valid.
func MarshalNode(n *Node) ([]byte, error) {
	value, err := NodeToUpstream(n).Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding node %s/%s: %w", n.Cluster, n.Name, err)
	}
	return value, nil
}

// DecodeNode decodes the value at a key, which is the node's name, below its
// cluster's prefix. The error is a *Refusal: ReasonMalformed or
// ReasonKeyMismatch. Whether the cluster may say that is up to a Validator.
//
// Values in the form that upstream and we write are read without encoding/json,
// several times faster (BenchmarkDecodeNode); the results are the same
// (FuzzDecodeNode).
func DecodeNode(key string, value []byte) (Node, error) {
	if n, ok := decodeUsualNode(key, value); ok {
		return n, nil
	}
	return decodeAnyNode(key, value)
}

func decodeAnyNode(key string, value []byte) (Node, error) {
	// Not upstream's own Unmarshal: its check of the cluster's ID depends on the
	// process's global configuration.
	var in nodetypes.Node
	if err := json.Unmarshal(value, &in); err != nil {
		return Node{}, refuse(Nodes, key, ReasonMalformed, "%w", err)
	}
	switch {
	case in.Cluster == "":
		return Node{}, refuse(Nodes, key, ReasonMalformed, "the node names no cluster")
	case in.Name == "":
		return Node{}, refuse(Nodes, key, ReasonMalformed, "the node has no name")
	case in.Name != key:
		return Node{}, refuse(Nodes, key, ReasonKeyMismatch, "the value is that of %q", in.Name)
	}
	n, err := nodeFromUpstream(&in)
	if err != nil {
		return Node{}, refuse(Nodes, key, ReasonMalformed, "%w", err)
	}
	return n, nil
}

// nodeFromUpstream converts upstream's node. Addresses and prefixes that are not valid
// ones are left out, and the error names them. The maps are shared with in, not copied.
func nodeFromUpstream(in *nodetypes.Node) (Node, error) {
	var c nodeConversion
	n := Node{
		Name:          in.Name,
		Cluster:       in.Cluster,
		ClusterID:     in.ClusterID,
		PodCIDRs4:     c.prefixes("IPv4 pod CIDR", false, in.GetIPv4AllocCIDRs()),
		PodCIDRs6:     c.prefixes("IPv6 pod CIDR", true, in.GetIPv6AllocCIDRs()),
		HealthIP4:     c.addr("IPv4 health address", in.IPv4HealthIP),
		HealthIP6:     c.addr("IPv6 health address", in.IPv6HealthIP),
		IngressIP4:    c.addr("IPv4 ingress address", in.IPv4IngressIP),
		IngressIP6:    c.addr("IPv6 ingress address", in.IPv6IngressIP),
		EncryptionKey: in.EncryptionKey,
		Labels:        in.Labels,
		Annotations:   in.Annotations,
		Source:        string(in.Source),
		NodeIdentity:  in.NodeIdentity,
		WireGuardKey:  in.WireguardPubKey,
		BootID:        in.BootID,
	}
	for _, a := range in.IPAddresses {
		addr := c.addr("address", a.IP)
		if !addr.IsValid() {
			c.fail(fmt.Errorf("an address of type %q is empty", a.Type))
			continue
		}
		n.Addresses = append(n.Addresses, NodeAddress{Type: string(a.Type), IP: addr})
	}
	return n, c.err
}

// nodeConversion gathers what could not be converted.
type nodeConversion struct{ err error }

func (c *nodeConversion) fail(err error) { c.err = errors.Join(c.err, err) }

func (c *nodeConversion) addr(what string, ip net.IP) netip.Addr {
	addr, err := addrOf(ip)
	if err != nil {
		c.fail(fmt.Errorf("%s: %w", what, err))
	}
	return addr
}

func (c *nodeConversion) prefixes(what string, ipv6 bool, in []*cidr.CIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, one := range in {
		if one == nil || one.IPNet == nil {
			c.fail(fmt.Errorf("%s: empty", what))
			continue
		}
		prefix, err := prefixOf(one.IP, one.Mask)
		if err == nil && prefix.Addr().Is6() != ipv6 {
			err = fmt.Errorf("%s is of the other family", prefix)
		}
		if err != nil {
			c.fail(fmt.Errorf("%s: %w", what, err))
			continue
		}
		out = append(out, prefix.Masked())
	}
	return out
}

// NodeToUpstream gives upstream's form of a node, for what takes in nodes inside
// upstream's programs. The maps are shared with n, not copied.
func NodeToUpstream(n *Node) *nodetypes.Node {
	out := &nodetypes.Node{
		Name:            n.Name,
		Cluster:         n.Cluster,
		IPv4HealthIP:    ipOf(n.HealthIP4),
		IPv6HealthIP:    ipOf(n.HealthIP6),
		IPv4IngressIP:   ipOf(n.IngressIP4),
		IPv6IngressIP:   ipOf(n.IngressIP6),
		ClusterID:       n.ClusterID,
		Source:          source.Source(n.Source),
		EncryptionKey:   n.EncryptionKey,
		Labels:          n.Labels,
		Annotations:     n.Annotations,
		NodeIdentity:    n.NodeIdentity,
		WireguardPubKey: n.WireGuardKey,
		BootID:          n.BootID,
	}
	for _, a := range n.Addresses {
		out.IPAddresses = append(out.IPAddresses,
			nodetypes.Address{Type: addressing.AddressType(a.Type), IP: ipOf(a.IP)})
	}
	out.IPv4AllocCIDR, out.IPv4SecondaryAllocCIDRs = cidrsOf(n.PodCIDRs4)
	out.IPv6AllocCIDR, out.IPv6SecondaryAllocCIDRs = cidrsOf(n.PodCIDRs6)
	return out
}

// cidrsOf splits pod CIDRs into the primary one and the others. Both are nil
// where there is none, which is "null" on the wire.
func cidrsOf(prefixes []netip.Prefix) (primary *cidr.CIDR, secondary []*cidr.CIDR) {
	for i, p := range prefixes {
		p = plainPrefix(p)
		one := cidr.NewCIDR(&net.IPNet{IP: ipOf(p.Addr()), Mask: maskOf(p)})
		if i == 0 {
			primary = one
		} else {
			secondary = append(secondary, one)
		}
	}
	return primary, secondary
}
