// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package main

import (
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHive has the program print what it is made of, with all constructors called: each
// type has one of them, and no flag is there twice. Upstream's configuration is global:
// there is one such test in the process.
func TestHive(t *testing.T) {
	command := newCmd()
	for _, flag := range []string{"datastore", "clustermesh-ingest", "enable-ondemand-resolution"} {
		require.NotNil(t, command.Flags().Lookup(flag), "--%s", flag)
	}
	out := stdout(t, func() {
		command.SetArgs([]string{"hive"})
		require.NoError(t, command.Execute())
	})
	for _, text := range []string{
		"agent (Cilium Agent)",
		"waggle (State of clusters in tables and from there to the agent)",
		"state (The tables of what is known and their Writer)",
		"bridge (Tables to what the agent has of its own)",
	} {
		require.Contains(t, out, text)
	}
}

// stdout is what fn prints.
func stdout(t *testing.T, fn func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	before := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = before }()
	printed := make(chan string)
	go func() {
		text, _ := io.ReadAll(r)
		printed <- string(text)
	}()
	fn()
	os.Stdout = before
	require.NoError(t, w.Close())
	return <-printed
}
