// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRemovePins(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pins")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "amber"), 0o700))
	require.NoError(t, removePins(dir))
	require.NoDirExists(t, dir)
	require.NoError(t, removePins(dir), "nothing was pinned")
	require.Error(t, removePins(filepath.Join(t.TempDir(), "not\x00a path")))
}
