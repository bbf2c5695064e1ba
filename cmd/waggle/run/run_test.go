// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A directory that is somebody's, say the dumps themselves, must survive being
// named by --run-dir.
func TestClaimKeepsForeignFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	file := filepath.Join(dir, "precious")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))

	_, err := claim(dir)
	require.ErrorContains(t, err, "--run-dir")
	require.FileExists(t, file)
	require.NoFileExists(t, dir+".lock")
}

func TestClaimCleansUpAfterKilledRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	release, err := claim(dir)
	require.NoError(t, err)

	_, err = claim(dir)
	require.ErrorContains(t, err, "already runs")

	left := filepath.Join(dir, "left")
	require.NoError(t, os.WriteFile(left, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600))
	require.NoError(t, empty(dir)) // what the next run begins with
	require.NoFileExists(t, left)
	require.NoFileExists(t, filepath.Join(dir, ".hidden"))

	require.NoError(t, release())
	require.NoDirExists(t, dir)
	require.NoFileExists(t, dir+".lock")
}

func TestOptionsValidate(t *testing.T) {
	require.NoError(t, Options{RunDir: "x", Backend: "auto"}.validate())
	require.ErrorContains(t, Options{Backend: "auto"}.validate(), "--run-dir")
	require.ErrorContains(t, Options{RunDir: "x", Backend: "magic"}.validate(), "--ipcache-backend")
}

// Beyond the kernel's limit a shell can't listen, and the run would wait for it
// without end.
func TestPrepareRefusesLongRunDir(t *testing.T) {
	_, err := prepare(filepath.Join(t.TempDir(), strings.Repeat("d", 100)), []Cluster{{Name: "amber", ID: 1}})
	require.ErrorContains(t, err, "--run-dir")
}

func TestPinsOfRunsDiffer(t *testing.T) {
	a, b := Layout{Dir: "/a"}.pins(), Layout{Dir: "/b"}.pins()
	require.NotEqual(t, a, b)
	require.NotContains(t, a, ".") // the BPF file system refuses it
}
