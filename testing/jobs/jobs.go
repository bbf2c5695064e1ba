// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package jobs looks at what the jobs of a hive say of themselves, be it one of the test
// or another process, whose shell is asked.
package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"

	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/shell"
)

// NameOf is the name of the job that a row of health is the own one of: the hive gives
// each job that it starts a scope.
func NameOf(row *types.Status) (name string, found bool) {
	if len(row.ID.Component) == 0 {
		return "", false
	}
	last := row.ID.Component[len(row.ID.Component)-1]
	for _, prefix := range []string{"job-", "timer-job-", "observer-job-"} {
		if name, found = strings.CutPrefix(last, prefix); found {
			return name, true
		}
	}
	return "", false
}

// Silent gives the names of the jobs among rows of health, and the IDs of those of them
// that say nothing: "Running" is what the hive says of one that is silent.
func Silent(rows iter.Seq[types.Status]) (names, silent []string) {
	for row := range rows {
		name, found := NameOf(&row)
		if !found {
			continue
		}
		names = append(names, name)
		if row.Message == "" || row.Message == "Running" {
			silent = append(silent, row.ID.String())
		}
	}
	return names, silent
}

// ShellOf is the socket of the shell of a process that has it where upstream's programs
// do, in whichever mount namespace.
func ShellOf(pid int) (string, error) {
	// Links within the process's root would be followed from ours.
	dir, err := filepath.EvalSymlinks("/var/run")
	if err != nil {
		return "", fmt.Errorf("looking for the directory of sockets: %w", err)
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), dir, strings.TrimPrefix(defaults.ShellSockPath, "/var/run")), nil
}

// Ask gives the rows of health that the shell behind a socket shows.
func Ask(socket string) (rows []types.Status, err error) {
	var out bytes.Buffer
	if err := shell.ShellExchange(shell.Config{ShellSockPath: socket}, &out, "db/show --format=json health"); err != nil {
		return nil, fmt.Errorf("asking the shell at %q: %w", socket, err)
	}
	for decoder := json.NewDecoder(&out); ; {
		var row types.Status
		switch err := decoder.Decode(&row); {
		case errors.Is(err, io.EOF):
			return rows, nil
		case err != nil:
			return nil, fmt.Errorf("reading what the shell at %q shows: %w", socket, err)
		}
		rows = append(rows, row)
	}
}
