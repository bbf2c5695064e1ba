// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
)

// neighbour is a program of somebody else's, which counts packets, and drops them if
// that is asked for.
type neighbour struct {
	program *ebpf.Program
	// state has the count and the verdict.
	state *ebpf.Map
}

func attachNeighbour(t testing.TB, ifindex int, anchor link.Anchor) *neighbour {
	t.Helper()
	state, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	require.NoError(t, err)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "neighbour",
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, state.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.LoadMem(asm.R0, asm.R1, 8, asm.DWord),
			asm.Return(),
		},
		License: "MIT",
	})
	require.NoError(t, err)
	n := &neighbour{program: program, state: state}
	n.decide(t, tcxNext)
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: anchor})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		require.NoError(t, program.Close())
		require.NoError(t, state.Close())
	})
	return n
}

func (n *neighbour) count(t testing.TB) int {
	t.Helper()
	var state [2]int64
	require.NoError(t, n.state.Lookup(uint32(0), &state))
	return int(state[0])
}

// decide has it give this verdict from now on.
func (n *neighbour) decide(t testing.TB, verdict int64) {
	t.Helper()
	require.NoError(t, n.state.Put(uint32(0), [2]int64{int64(n.count(t)), verdict}))
}

// tcxDrop is the kernel's TCX_DROP.
const tcxDrop = 2

// chain is the programs on the ingress of an interface, in order.
func chain(t testing.TB, ifindex int) (ids []ebpf.ProgramID) {
	t.Helper()
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	require.NoError(t, err)
	for _, program := range result.Programs {
		ids = append(ids, program.ID)
	}
	return ids
}

func programID(t testing.TB, program *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := program.Info()
	require.NoError(t, err)
	id, ok := info.ID()
	require.True(t, ok)
	return id
}

// TestOtherPrograms: ours comes first, and the others have every packet still.
func TestOtherPrograms(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	lxc := addVeth(t, "lxc1", "pod1")
	pod := ifindex(t, "pod1")

	head := attachNeighbour(t, lxc, link.Head())
	require.NoError(t, f.attach(lxc, KindPod))
	tail := attachNeighbour(t, lxc, link.Tail())
	ours := programID(t, f.programs.ethernet.Pod)
	require.Equal(t, []ebpf.ProgramID{ours, programID(t, head.program), programID(t, tail.program)}, chain(t, lxc))

	send(t, pod, frame("10.1.0.1", "10.7.0.9"))
	send(t, pod, frame("10.1.0.1", "10.9.0.9"))
	f.seen(t, Stats{}, 2)
	wait(t, func() bool { return head.count(t) == 2 && tail.count(t) == 2 }, "packets at the others")

	// One that drops drops, after we saw the packet.
	head.decide(t, tcxDrop)
	send(t, pod, frame("10.1.0.1", "10.7.0.10"))
	wait(t, func() bool { return head.count(t) == 3 }, "the packet at who drops it")
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.9"), netip.MustParseAddr("10.7.0.10")}, addrs(f.signals(t)))
	require.Equal(t, 2, tail.count(t))

	// Ours goes, the others stay.
	require.NoError(t, f.detach(lxc))
	require.Equal(t, []ebpf.ProgramID{programID(t, head.program), programID(t, tail.program)}, chain(t, lxc))
}
