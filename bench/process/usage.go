// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the processor time, user and system, of all threads of the process so
// far: by its CPU clock in nanoseconds while it runs, by wait4's rusage once it
// has ended.
func (p *Process) CPU() (time.Duration, error) {
	select {
	case <-p.done:
		return p.ended(), nil
	default:
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(cpuClock(p.PID()), &ts); err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s: %w", p.name, err)
	}
	return time.Duration(ts.Nano()), nil
}

// cpuClock is the clock of a process's CPU time, as clock_getcpuclockid(3) makes
// it: the complement of the ID, and in the low bits CPUCLOCK_SCHED.
func cpuClock(pid int) int32 {
	const sched = 2
	return int32(^pid)<<3 | sched
}

func (p *Process) ended() time.Duration {
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// Memory is what /proc/<pid>/status says of a process's memory, in bytes.
type Memory struct {
	// Peak is the largest resident set so far (VmHWM). Rusage's ru_maxrss, which
	// is the same otherwise, starts from the resident set of the process that
	// forked: here, of a benchmark that may be larger than what it measures.
	Peak int64
	// Resident is the resident set now (VmRSS): Anonymous, what the process
	// allocated, and File, the parts of its program file that it touched.
	Resident, Anonymous, File int64
}

// Memory reads the process's memory. It fails once the process has ended.
func (p *Process) Memory() (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of %s: %w", p.name, err)
	}
	m, err := parseMemory(status)
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of %s: %w", p.name, err)
	}
	return m, nil
}

// ResetPeak has Memory's Peak count from now, so that a later phase can be told
// from one that took more. See clear_refs in proc_pid_clear_refs(5).
func (p *Process) ResetPeak() error {
	const peak = "5"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.PID()), []byte(peak), 0); err != nil {
		return fmt.Errorf("resetting the peak of the memory of %s: %w", p.name, err)
	}
	return nil
}

func parseMemory(status []byte) (Memory, error) {
	var m Memory
	want := map[string]*int64{"VmHWM": &m.Peak, "VmRSS": &m.Resident, "RssAnon": &m.Anonymous, "RssFile": &m.File}
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		dst, ok := want[name]
		if !ok {
			continue
		}
		kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("%s: %w", name, err)
		}
		*dst = kilobytes << 10
		delete(want, name)
	}
	if len(want) > 0 {
		// A process that has ended and wasn't waited for has none of these lines.
		return Memory{}, fmt.Errorf("%d of its lines are missing", len(want))
	}
	return m, nil
}
