// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

// TestRun runs the mesh of the README, each part a process: all pairs are synced, a
// pod is found in another cluster's map, and in its own one by way of the cache.
func TestRun(t *testing.T) {
	// Sockets have short paths.
	parent, err := os.MkdirTemp("", "run-")
	require.NoError(t, err)
	defer os.RemoveAll(parent)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	dir := filepath.Join(parent, "r")
	require.NoError(t, run.Run(ctx, run.Options{
		Mesh: filepath.Join("..", "..", "testdata", "meshes", "meadow"), RunDir: dir,
		Backend: "memory", Once: true, Out: &out,
	}), "%s", &out)
	require.NoError(t, ctx.Err(), "%s", &out)
	text := out.String()
	require.Contains(t, text, "amber also has an in-cluster cache")
	require.Regexp(t, `(?m)^amber +etcd +127\.0\.0\.1:\d+ +connected for \d+s +yes +3 +4 +16 +3 *$`, text)
	require.Regexp(t, `End to end: pod (\S+) of amber, as clover's map has it:\n.* identity=65\d+ `, text)
	require.Regexp(t, `From the in-cluster cache: the same pod (\S+), as amber's own map has it:\n.* identity=65\d+ `, text)
	require.NoDirExists(t, dir, "it cleans up")
}
