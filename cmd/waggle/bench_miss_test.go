// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/netns"
	"github.com/waggle-mesh/waggle/testing/skip"
)

// TestBenchMiss measures few misses: all are resolved by the read-through, and the
// figures agree with each other. It says nothing about how long it takes.
func TestBenchMiss(t *testing.T) {
	var out bytes.Buffer
	root := newRootCmd()
	root.SetArgs([]string{"bench", "miss", "--misses=60", "--concurrency=8", "--scan=3000", "--entries=3000", "-o", "json"})
	root.SetOut(&out)
	err := root.ExecuteContext(t.Context())
	if errors.Is(err, netns.ErrNotPermitted) || errors.Is(err, ipcache.ErrBPFNotPermitted) {
		skip.Lacking(t, err)
	}
	require.NoError(t, err)
	var figures struct {
		P50         float64 `json:"p50_ms"`
		P99         float64 `json:"p99_ms"`
		Resolved    int
		Signals     int
		RateLimited int     `json:"rate_limited"`
		ReadThrough int     `json:"read_through"`
		Hit         float64 `json:"ns_per_packet_hit"`
		Miss        float64 `json:"ns_per_packet_miss"`
		Scan        struct {
			P50     float64 `json:"p50_ms"`
			Packets int
			Signals int
		}
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &figures))
	require.Equal(t, 60, figures.Resolved)
	require.Zero(t, figures.RateLimited)
	require.GreaterOrEqual(t, figures.Signals, 60)
	require.GreaterOrEqual(t, figures.ReadThrough, 60)
	require.Positive(t, figures.P50)
	require.LessOrEqual(t, figures.P50, figures.P99)
	require.Positive(t, figures.Hit)
	require.Positive(t, figures.Miss)
	require.GreaterOrEqual(t, figures.Scan.Packets, 3000)
	require.Positive(t, figures.Scan.P50)
	require.Positive(t, figures.Scan.Signals)
}
