// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestObjectsAreOfTheirSource compiles the programs and compares. It is of use to who
// changes them, who has the compiler; others have what was committed.
func TestObjectsAreOfTheirSource(t *testing.T) {
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("compiling the programs needs clang-14 and llvm-14: %v", err)
		}
	}
	command := exec.Command("go", "generate", ".")
	// The tool writes beside the source, of which this is a copy: within the module, and
	// in a directory that "./..." leaves out.
	source, err := os.MkdirTemp(".", "_generate")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(source)) })
	require.NoError(t, os.CopyFS(filepath.Join(source, "c"), os.DirFS("c")))
	generate, err := os.ReadFile("generate.go")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(source, "generate.go"), generate, 0o644))
	command.Dir = source
	output, err := command.CombinedOutput()
	require.NoError(t, err, string(output))
	for _, name := range []string{"miss_bpfel.o", "miss_bpfeb.o", "miss_bpfel.go", "miss_bpfeb.go"} {
		want, err := os.ReadFile(filepath.Join(source, name))
		require.NoError(t, err)
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s isn't of this source: make generate", name)
	}
}
