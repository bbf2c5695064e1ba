// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/testing/relay"
)

// lastHealth remembers the last thing that health was told.
type lastHealth struct{ told string }

func (h *lastHealth) OK(text string) { h.told = "OK: " + text }
func (h *lastHealth) Degraded(text string, err error) {
	h.told = "degraded: " + text + ": " + err.Error()
}
func (h *lastHealth) NewScope(string) cell.Health { return h }
func (h *lastHealth) Stopped(string)              {}
func (h *lastHealth) Close()                      {}

// TestSilentEtcd has a Writer with nothing to write in front of an etcd that is away, that
// takes connections and doesn't answer, and that is there.
func TestSilentEtcd(t *testing.T) {
	r, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	defer r.Close()
	// The kernel takes connections for who never does.
	hangs, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer hangs.Close()
	server := startServer(t, ServerConfig{})
	w := NewWriter(slog.New(slog.DiscardHandler), clientAt(t, time.Minute, "http://"+r.Address()))
	var health, own lastHealth
	report := w.reportHealth(&health)
	told := func() string {
		require.NoError(t, report(t.Context()))
		return health.told
	}
	require.Equal(t, "OK: etcd takes what is written", told())

	var asking sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer asking.Wait()
	defer cancel()
	asking.Go(func() { _ = w.ask(ctx, &own) }) // nil
	silent := func() bool { return strings.HasPrefix(told(), "degraded: Etcd doesn't answer: ") }
	require.Eventually(t, silent, patience, tick)
	r.Aim(hangs.Addr().String())
	require.Eventually(t, func() bool {
		return silent() && (strings.Contains(told(), "use of closed network connection") || strings.Contains(told(), "DeadlineExceeded"))
	}, patience, tick)
	r.Aim(strings.TrimPrefix(server.URL(), "http://"))
	require.Eventually(t, func() bool { return told() == "OK: etcd takes what is written" }, patience, tick)
	require.Zero(t, w.Stats().Commits)
}
