// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package enforcer stands in for Cilium's datapath where a test is to see whether
// packets get through: it drops what comes from, or goes to, an identity that isn't
// allowed, by the map in which an agent keeps the identities of addresses.
//
//	enforcer.c       the programs
//	enforcer.go      what is enforced
//	encapsulator.go  the sender's identity in the tunnel header
//	generate.go      how enforcer_bpf* are made of enforcer.c
//
// Attached last on an interface, after whatever else a test attaches there.
package enforcer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Enforcer drops packets. Interfaces are those of the calling thread's network
// namespace. Its methods are not safe for concurrent use, but for Allow, Deny and
// Verdicts.
type Enforcer struct {
	objects struct {
		EnforceDestination *ebpf.Program `ebpf:"enforce_destination"`
		EnforceSource      *ebpf.Program `ebpf:"enforce_source"`
		EnforceTunnel      *ebpf.Program `ebpf:"enforce_tunnel"`
		Allowed            *ebpf.Map     `ebpf:"allowed"`
		Verdicts           *ebpf.Map     `ebpf:"verdicts"`
	}
	links []link.Link
}

// New loads the programs. They read the pinned ipcache map, which has Cilium's layout.
// Nobody is allowed yet.
func New(ipcachePin string) (_ *Enforcer, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lifting the limit on locked memory: %w", err)
	}
	ipcache, err := ebpf.LoadPinnedMap(ipcachePin, nil)
	if err != nil {
		return nil, fmt.Errorf("opening the ipcache map: %w", err)
	}
	defer ipcache.Close() // the programs hold it
	spec, err := loadEnforcer()
	if err != nil {
		return nil, err
	}
	info, err := ipcache.Info()
	if err != nil {
		return nil, fmt.Errorf("looking at the ipcache map: %w", err)
	}
	// Its size is the agent's choice.
	spec.Maps["ipcache"].MaxEntries, spec.Maps["ipcache"].Flags = info.MaxEntries, info.Flags
	e := &Enforcer{}
	if err := spec.LoadAndAssign(&e.objects, &ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"ipcache": ipcache},
	}); err != nil {
		return nil, fmt.Errorf("loading the enforcing programs: %w", err)
	}
	return e, nil
}

// Destinations has what comes in from a pod go only where it may.
func (e *Enforcer) Destinations(ifindex int) error {
	return e.attach(e.objects.EnforceDestination, ifindex)
}

// Sources lets what comes in by a device of the node in only from where it may, by the
// address that it comes from.
func (e *Enforcer) Sources(ifindex int) error { return e.attach(e.objects.EnforceSource, ifindex) }

// TunnelSources is Sources for a tunnel device, by the identity in the tunnel header.
func (e *Enforcer) TunnelSources(ifindex int) error {
	return e.attach(e.objects.EnforceTunnel, ifindex)
}

func (e *Enforcer) attach(program *ebpf.Program, ifindex int) error {
	attached, err := attach(program, ifindex, ebpf.AttachTCXIngress)
	if err == nil {
		e.links = append(e.links, attached)
	}
	return err
}

func attach(program *ebpf.Program, ifindex int, at ebpf.AttachType) (link.Link, error) {
	attached, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: at, Anchor: link.Tail()})
	if err != nil {
		return nil, fmt.Errorf("attaching to interface %d: %w", ifindex, err)
	}
	return attached, nil
}

// Allow lets packets of these identities through.
func (e *Enforcer) Allow(identities ...uint32) error {
	for _, identity := range identities {
		if err := e.objects.Allowed.Put(identity, uint8(1)); err != nil {
			return fmt.Errorf("allowing identity %d: %w", identity, err)
		}
	}
	return nil
}

// Deny undoes Allow.
func (e *Enforcer) Deny(identities ...uint32) error {
	for _, identity := range identities {
		if err := e.objects.Allowed.Delete(identity); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("denying identity %d: %w", identity, err)
		}
	}
	return nil
}

// Verdicts counts the packets that went through and those that were dropped, on all
// interfaces since New.
func (e *Enforcer) Verdicts() (passed, dropped uint64, err error) {
	for index, count := range []*uint64{&passed, &dropped} {
		if err := e.objects.Verdicts.Lookup(uint32(index), count); err != nil {
			return 0, 0, fmt.Errorf("reading verdicts: %w", err)
		}
	}
	return passed, dropped, nil
}

// Close detaches and unloads everything.
func (e *Enforcer) Close() error {
	var errs []error
	for _, attached := range e.links {
		errs = append(errs, attached.Close())
	}
	o := &e.objects
	return errors.Join(append(errs, o.EnforceDestination.Close(), o.EnforceSource.Close(), o.EnforceTunnel.Close(),
		o.Allowed.Close(), o.Verdicts.Close())...)
}
