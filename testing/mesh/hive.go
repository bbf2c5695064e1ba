// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"log/slog"
	"testing"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// Hive is a hive that is stopped and started as a test likes, each time anew, as
// a process is. It stops with the test.
type Hive struct {
	t     testing.TB
	log   *slog.Logger
	flags Flags
	cells []cell.Cell
	// running is nil while it is stopped.
	running *hive.Hive
}

// NewHive makes a hive of Waggle's cells, upstream's or a test's own. It doesn't
// run before Start.
func NewHive(t testing.TB, flags Flags, cells ...cell.Cell) *Hive {
	h := &Hive{t: t, log: Log(t), flags: flags, cells: cells}
	t.Cleanup(h.Stop)
	return h
}

// Log is the test's log, from warnings on.
func Log(t testing.TB) *slog.Logger {
	return hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
}

// Start starts the hive, unless it runs.
func (h *Hive) Start() {
	h.t.Helper()
	if h.running != nil {
		return
	}
	next := hive.New(h.cells...)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	next.RegisterFlags(flags)
	for name, value := range h.flags {
		require.NoError(h.t, flags.Set(name, value), "--%s=%s", name, value)
	}
	require.NoError(h.t, next.Start(h.log, h.t.Context()))
	h.running = next
}

// Args are its flags, for another process that is to be the same.
func (h *Hive) Args() []string {
	var args []string
	for name, value := range h.flags {
		args = append(args, "--"+name+"="+value)
	}
	return args
}

// Stop stops the hive, if it runs.
func (h *Hive) Stop() {
	h.t.Helper()
	if h.running == nil {
		return
	}
	last := h.running
	h.running = nil
	// Not the test's context, which has ended when this is its clean-up.
	require.NoError(h.t, last.Stop(h.log, context.Background()))
}

// Restart stops the hive and starts it again.
func (h *Hive) Restart() {
	h.t.Helper()
	h.Stop()
	h.Start()
}
