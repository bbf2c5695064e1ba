// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgram has the test's binary be the program.
const asProgram = "WAGGLE_TEST_EMBEDDING"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestProgram: the program prints the endpoints of a directory of manifests.
func TestProgram(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	program := exec.CommandContext(t.Context(), self,
		"--cluster-name=amber", "--cluster-id=1", "--k8s-manifests=../../testdata/meshes/meadow/amber")
	program.Env = append(os.Environ(), asProgram+"=1")
	program.Stderr = os.Stderr
	out, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	defer func() {
		_ = program.Process.Kill()
		_ = program.Wait() // its error is the kill
	}()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), " gone: false") {
			return
		}
	}
	t.Fatal("the program has ended, and printed no endpoint")
}

// TestPage: the page has the program as it is.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../embedding.md")
	require.NoError(t, err)
	program, err := os.ReadFile("main.go")
	require.NoError(t, err)
	_, code, _ := strings.Cut(string(program), "package main\n")
	require.Contains(t, string(page), "```go\npackage main\n"+code+"```\n")
	require.Less(t, strings.Count(code, "\n"), 60)
}
