// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/hive/script"
	"k8s.io/apimachinery/pkg/util/wait"
)

// patience bounds what is waited for; upstream's reconnects take seconds.
const patience = time.Minute

// do is a command without arguments that can't fail by itself.
func do(summary string, what func()) script.Cmd {
	return script.Command(script.CmdUsage{Summary: summary},
		func(*script.State, ...string) (script.WaitFunc, error) {
			what()
			return nil, nil
		})
}

// readyCommand asks whether the reader has everything.
func readyCommand(r reader) script.Cmd {
	return script.Command(script.CmdUsage{Summary: "Wait until the reader is ready"},
		func(s *script.State, _ ...string) (script.WaitFunc, error) { return nil, await(s, r.problem) })
}

// contentCommand compares all that the reader has.
func contentCommand(r reader) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Wait until the reader has what files say",
			Args:    "[file...]",
			Detail:  []string{"The lines of all files together are to be what it has. Empty lines don't count."},
		},
		func(s *script.State, files ...string) (script.WaitFunc, error) {
			want, err := readLines(s, files)
			if err != nil {
				return nil, err
			}
			return nil, await(s, func() error { return compare(want, r.content().lines()) })
		})
}

// goneCommand compares all that the reader was told is gone.
func goneCommand(r reader) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Wait until just this has gone at the reader since its start",
			Args:    "[key...]",
			Detail:  []string{"A key is a kind, a colon and the name, such as node:north/alpha."},
		},
		func(s *script.State, keys ...string) (script.WaitFunc, error) {
			for i, key := range keys {
				keys[i] = strings.Replace(key, ":", " ", 1)
			}
			return nil, await(s, func() error { return compare(keys, r.gone()) })
		})
}

// await waits until a check passes. The script's own way to do that, a retried
// command, repeats all that comes before it and doesn't tell the last error.
func await(s *script.State, check func() error) error {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	var last error
	if wait.PollUntilContextCancel(ctx, 5*time.Millisecond, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	}) != nil {
		return last
	}
	return nil
}

// readLines are the lines of files, one file after the other.
func readLines(s *script.State, files []string) (lines []string, err error) {
	for _, name := range files {
		file, err := os.Open(s.Path(name))
		if err != nil {
			return nil, err
		}
		scanner := bufio.NewScanner(file)
		for scanner.Scan() {
			lines = append(lines, scanner.Text())
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// compare says which lines there are too many or too few, in any order.
func compare(want, have []string) error {
	count := map[string]int{}
	for _, line := range have {
		count[line]++
	}
	for _, line := range want {
		count[line]--
	}
	var differences []string
	for line, n := range count {
		switch {
		case strings.TrimSpace(line) == "" || n == 0:
		case n > 0:
			differences = append(differences, "unexpected "+line)
		default:
			differences = append(differences, "missing    "+line)
		}
	}
	if len(differences) == 0 {
		return nil
	}
	slices.Sort(differences)
	return fmt.Errorf("the reader differs:\n%s", strings.Join(differences, "\n"))
}
