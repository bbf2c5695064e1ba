// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// processors are the times of all processors since the machine started, in ticks
// of the kernel.
type processors struct{ idle, all uint64 }

// readProcessors reads the first line of /proc/stat: "cpu", user, nice, system,
// idle, iowait, irq, softirq, steal, and the time of guests, which the first two
// have in them.
func readProcessors() (p processors, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return p, fmt.Errorf("reading how busy the machine is: %w", err)
	}
	first, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(first)
	const idle, iowait, steal = 4, 5, 8
	if len(fields) <= steal || fields[0] != "cpu" {
		return p, errors.New("reading how busy the machine is: /proc/stat has another form")
	}
	for i, field := range fields[1 : steal+1] {
		ticks, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return p, fmt.Errorf("reading how busy the machine is: %w", err)
		}
		p.all += ticks
		if i+1 == idle || i+1 == iowait {
			p.idle += ticks
		}
	}
	return p, nil
}

// since is which part of the processors' time was used since before, 1 being all
// of them all the time.
func (p processors) since(before processors) float64 {
	if p.all == before.all {
		return 0
	}
	return 1 - float64(p.idle-before.idle)/float64(p.all-before.all)
}
