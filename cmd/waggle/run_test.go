// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cmd/waggle/run"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// TestRun runs the mesh of the README, each part a process: all pairs are synced, a
// pod is found in another cluster's map, and in its own one by way of the cache.
func TestRun(t *testing.T) {
	// Sockets have short paths.
	parent, err := os.MkdirTemp("", "run-")
	require.NoError(t, err)
	defer os.RemoveAll(parent)
	stateBefore := filesBelow(t, inclustercache.DefaultDatastoreConfig.StateDir)
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
	require.Regexp(t, `(?m)^amber +etcd +127\.0\.0\.1:\d+ +connected for \S+ +yes +3 +4 +16 +3 *$`, text)
	require.Regexp(t, `(?m)^clover +opt-in +us +endpoints +6 +10 +0 +0$`, text)
	require.Regexp(t, `(?m)^clover +us +amber +eu +12 +4$`, text)
	require.Regexp(t, `End to end: pod (\S+) of amber, as clover's map has it:\n.* identity=65\d+ `, text)
	require.Regexp(t, `From the in-cluster cache: the same pod (\S+), as amber's own map has it:\n.* identity=65\d+ `, text)
	require.NoDirExists(t, dir, "it cleans up")
	left, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, left, "beside it as well")
	require.Equal(t, stateBefore, filesBelow(t, inclustercache.DefaultDatastoreConfig.StateDir),
		"what a real agent of this machine keeps is none of its business")
}

// filesBelow are the files of a directory with when they were written; none if there
// is no such directory.
func filesBelow(t *testing.T, dir string) map[string]time.Time {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	files := map[string]time.Time{}
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		files[entry.Name()] = info.ModTime()
	}
	return files
}
