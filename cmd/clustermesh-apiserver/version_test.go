// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVersion takes the commands by which make builds upstream's programs with our cells
// in them, and builds with the same flags a small program that says its version as they
// do: linking one of them takes a minute.
func TestVersion(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil && os.Getenv("CI") == "" {
		t.Skip("no make: ", err)
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(root, "Makefile")) // so that go test runs it again when that changes
	require.NoError(t, err)
	program := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(program, []byte(`package main

import (
	"fmt"

	"github.com/cilium/cilium/pkg/version"
)

func main() {
	fmt.Print(version.Version, "\n", version.GetCiliumVersion().Version, " ", version.GetCiliumVersion().Revision)
}
`), 0o600))
	output := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		return string(out)
	}
	for _, name := range []string{"clustermesh-apiserver", "cilium-agent"} {
		target := "bin/" + name
		line := strings.TrimSpace(output("make", "--no-print-directory", "-n", "-W", "go.mod", target))
		command, of, found := strings.Cut(line, " -o "+target+" ")
		require.True(t, found, line)
		require.Equal(t, "./cmd/"+name, of)
		command = strings.Replace(command, " build ", " run ", 1)
		require.Regexp(t, `^1\.19\.3 waggle\S* \S+ go version go\S+ \S+\n1\.19\.3 waggle\S*$`, output("sh", "-c", command+" "+program))
	}
}
