// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/waggle-mesh/waggle/ipcache"
)

// Encapsulator is the other end of a tunnel: it gives what leaves by a tunnel device
// the address of the node that it goes to, and its sender's identity as the VNI.
type Encapsulator struct {
	objects struct {
		Encapsulate *ebpf.Program `ebpf:"encapsulate"`
		Senders     *ebpf.Map     `ebpf:"senders"`
	}
	link link.Link
}

// Encapsulate attaches an Encapsulator to a tunnel device of the calling thread's
// network namespace. All packets go to one node, which has an IPv4 address.
func Encapsulate(ifindex int, to netip.Addr) (_ *Encapsulator, err error) {
	spec, err := loadEnforcer()
	if err != nil {
		return nil, err
	}
	// The program has it in the host's order, as bpf_tunnel_key does.
	if err := spec.Variables["tunnel_peer"].Set(binary.BigEndian.Uint32(to.AsSlice())); err != nil {
		return nil, fmt.Errorf("naming the node to send to: %w", err)
	}
	e := &Encapsulator{}
	if err := spec.LoadAndAssign(&e.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the encapsulating program: %w", err)
	}
	if e.link, err = attach(e.objects.Encapsulate, ifindex, ebpf.AttachTCXEgress); err != nil {
		return nil, errors.Join(err, e.objects.Encapsulate.Close(), e.objects.Senders.Close())
	}
	return e, nil
}

// Sender says which identity the packets of an address have; others have that of the
// world.
func (e *Encapsulator) Sender(addr netip.Addr, identity uint32) error {
	key, _ := ipcache.NewKey(netip.PrefixFrom(addr, addr.BitLen()))
	if err := e.objects.Senders.Put(key, identity); err != nil {
		return fmt.Errorf("giving %s its identity: %w", addr, err)
	}
	return nil
}

// Close detaches and unloads it.
func (e *Encapsulator) Close() error {
	return errors.Join(e.link.Close(), e.objects.Encapsulate.Close(), e.objects.Senders.Close())
}
