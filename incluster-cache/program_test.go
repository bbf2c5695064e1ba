// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgramID tells builds apart that have the same version.
func TestProgramID(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/p\n\ngo 1.26\n"), 0o600))
	build := func(content string, flags ...string) string {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(content), 0o600))
		cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-o", "p"}, flags...), ".")...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		id, err := programID(filepath.Join(dir, "p"))
		require.NoError(t, err)
		return id
	}
	const one, two = "package main\n\nfunc main() {}\n", "package main\n\nfunc main() { println() }\n"
	for kind, flags := range map[string][]string{"build ": nil, "hash ": {"-ldflags=-buildid="}} {
		first, second := build(one, flags...), build(two, flags...)
		require.Contains(t, first, kind)
		require.Contains(t, second, kind)
		require.NotEqual(t, first, second)
		require.Equal(t, first, build(one, flags...))
	}

	running, err := programID(runningProgram)
	require.NoError(t, err)
	require.NotEmpty(t, running)
	_, err = programID(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}
