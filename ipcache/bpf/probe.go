// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math"

	"errors"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// probe tries what the programs need, and names what is missing.
func probe() error {
	for _, need := range []struct {
		what string
		try  func() error
	}{
		{"LPM tries", func() error { return features.HaveMapType(ebpf.LPMTrie) }},
		{"LRU hash maps", func() error { return features.HaveMapType(ebpf.LRUHash) }},
		{"ring buffers", func() error { return features.HaveMapType(ebpf.RingBuf) }},
		{"the tunnel's header in a program", func() error {
			return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkbGetTunnelKey)
		}},
		{"the coarse clock in a program", func() error {
			return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs)
		}},
		{"atomic compare-and-swap in a program", features.HaveV3ISA},
		{"TCX", haveTCX},
	} {
		if err := need.try(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnsupported, need.what, err)
		}
	}
	return nil
}

// haveTCX attaches a program to an interface that can't exist.
func haveTCX() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "waggle_probe",
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
		License: "MIT",
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
