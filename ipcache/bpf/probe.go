// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// need is a feature of the kernel, and how to try it.
type need struct {
	what string
	try  func() error
}

// needs are what the programs can't do without.
func needs() []need {
	helper := func(what string, fn asm.BuiltinFunc) need {
		return need{what, func() error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }}
	}
	return []need{
		{"LPM tries", func() error { return features.HaveMapType(ebpf.LPMTrie) }},
		{"LRU hash maps", func() error { return features.HaveMapType(ebpf.LRUHash) }},
		{"ring buffers", func() error { return features.HaveMapType(ebpf.RingBuf) }},
		{"instructions of version 3", features.HaveV3ISA},
		helper("reading a tunnel's header", asm.FnSkbGetTunnelKey),
		helper("reading from the IP header on", asm.FnSkbLoadBytesRelative),
		helper("the coarse clock", asm.FnKtimeGetCoarseNs),
		{"programs on TCX", haveTCX},
	}
}

// probe tries each, and names the first that is missing.
func probe(needs []need) error {
	for _, need := range needs {
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
