// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what a benchmark ran on. Figures of two machines, or of one that
// had other work to do, can't be compared.
type Machine struct {
	Cores       int    `json:"cores"`
	Model       string `json:"model"`
	MemoryBytes int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	// Load is the one-minute load average before the benchmark began: what else
	// the machine had to do.
	Load float64 `json:"load"`
}

// Build is what was measured, as far as the program file knows.
type Build struct {
	// Commit is empty where the program wasn't built from a repository.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	// Dependencies are the versions of those that the figures depend on.
	Dependencies map[string]string `json:"dependencies,omitempty"`
}

func thisMachine() (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("describing the machine: %w", err)
	}
	m.Model = field(string(cpuinfo), "model name")
	var (
		info  unix.Sysinfo_t
		uname unix.Utsname
	)
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("describing the machine: %w", err)
	}
	m.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	if err := unix.Uname(&uname); err != nil {
		return m, fmt.Errorf("describing the machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uname.Release[:])
	loadavg, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, fmt.Errorf("describing the machine: %w", err)
	}
	first, _, _ := strings.Cut(string(loadavg), " ")
	if m.Load, err = strconv.ParseFloat(first, 64); err != nil {
		return m, fmt.Errorf("describing the machine: %w", err)
	}
	return m, nil
}

// field finds the first "name : value" line; some processors have no model name.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func thisBuild() Build {
	var b Build
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	b.Dependencies = map[string]string{}
	for _, dep := range info.Deps {
		switch dep.Path {
		case "github.com/cilium/cilium", "github.com/cilium/statedb", "go.etcd.io/etcd/server/v3", "google.golang.org/grpc":
			b.Dependencies[dep.Path] = dep.Version
		}
	}
	return b
}
