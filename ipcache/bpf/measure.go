// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"time"
)

// Measure gives an Ethernet frame to the program for interfaces of a kind, so many
// times in a row without a system call in between (BPF_PROG_TEST_RUN), and says how long
// each took, in whole nanoseconds. The packets count in [Stats], and are signalled, as
// any are.
func (k *Kernel) Measure(kind Kind, frame []byte, repeat int) (time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.programs == nil {
		return 0, ErrClosed
	}
	program := k.programs.of(kind, false)
	if program == nil {
		return 0, fmt.Errorf("no program for the kind %d of interfaces", kind)
	}
	verdict, each, err := program.Benchmark(frame, repeat, nil)
	if err != nil {
		return 0, fmt.Errorf("running the program for %s interfaces: %w", kind, err)
	}
	if int32(verdict) != tcxNext {
		return 0, fmt.Errorf("the program for %s interfaces decided about a packet (%d)", kind, int32(verdict))
	}
	return each, nil
}

// tcxNext is the kernel's TCX_NEXT, which leaves a packet to who comes after.
const tcxNext = -1
