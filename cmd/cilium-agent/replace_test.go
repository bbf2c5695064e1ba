// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

type version struct{ Path, Version string }

type modFile struct {
	Require []version
	Replace []struct{ Old, New version }
}

// readModFile reads the go.mod of a directory.
func readModFile(t *testing.T, dir string) (file modFile) {
	t.Helper()
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = dir
	raw, err := cmd.Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &file))
	return file
}

// TestReplaces: what upstream's module replaces, of what we link as well, is replaced by
// the same in ours: Go ignores the replacements of dependencies, and the agent would have
// another BGP speaker than upstream's.
func TestReplaces(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/cilium").Output()
	require.NoError(t, err)
	ours, upstreams := readModFile(t, "."), readModFile(t, filepath.Clean(string(dir[:len(dir)-1])))
	compared := 0
	for _, replace := range upstreams.Replace {
		if slices.ContainsFunc(ours.Require, func(v version) bool { return v.Path == replace.Old.Path }) {
			require.Contains(t, ours.Replace, replace)
			compared++
		}
	}
	require.Positive(t, compared)
}
