// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStamp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Stamp{
			Run: rapid.IntRange(0, 1000).Draw(t, "run"), Number: rapid.IntRange(1, 1<<40).Draw(t, "number"),
			Due: time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "due")),
		}
		got, ok := ParseStamp(want.Pod())
		require.True(t, ok)
		require.Equal(t, want, got)
		value, err := wire.MarshalEndpoint(&wire.Endpoint{
			Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: 300, Namespace: "checkout", Pod: want.Pod(),
		})
		require.NoError(t, err)
		got, ok = FindStamp(value)
		require.True(t, ok)
		require.Equal(t, want, got)
	})
	for _, pod := range []string{"", "checkout-frontend-abc", "churn-", "churn-1-2", "churn-1-x-5", "churn-1-2-!"} {
		_, ok := ParseStamp(pod)
		require.False(t, ok, pod)
	}
	for _, value := range []string{"", `{"K8sPodName":"web"}`, `{"K8sPodName":"churn-1-2-3`} {
		_, ok := FindStamp([]byte(value))
		require.False(t, ok, value)
	}
}

// TestFollower follows rows that replace each other.
func TestFollower(t *testing.T) {
	var writer *state.Writer
	socket := filepath.Join(t.TempDir(), "follower.sock")
	h := hive.New(state.Cell, Cell, cell.Invoke(func(w *state.Writer) { writer = w }))
	hive.AddConfigOverride(h, func(c *Config) { c.FollowSocket, c.FollowRun = socket, 2 })
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.WithoutCancel(t.Context()))) })

	origin := writer.Origin("source", 2, state.SourceClusterMesh)
	upsert := func(address, pod string) {
		tx := writer.Begin()
		tx.UpsertEndpoint(origin, state.Owner{}, wire.Endpoint{
			Prefix: netip.PrefixFrom(netip.MustParseAddr(address), 32), HostIP: netip.MustParseAddr("172.16.0.1"), Identity: 300, Pod: pod,
		})
		tx.Commit()
	}
	seen := func(sum int) Status {
		var status Status
		require.Eventually(t, func() bool {
			var err error
			status, err = Ask(t.Context(), socket)
			return err == nil && status.Sum == sum
		}, 10*time.Second, time.Millisecond)
		return status
	}
	upsert("10.0.0.1", "web")
	upsert("10.0.0.2", Stamp{Run: 1, Number: 7, Due: time.Now()}.Pod())
	upsert("10.0.0.1", Stamp{Run: 2, Number: 1, Due: time.Now().Add(-time.Minute)}.Pod())
	seen(1)
	upsert("10.0.0.1", Stamp{Run: 2, Number: 2, Due: time.Now().Add(-time.Minute)}.Pod())
	seen(2)
	upsert("10.0.0.2", Stamp{Run: 2, Number: 3, Due: time.Now().Add(-time.Minute)}.Pod())
	status := seen(5)
	require.Equal(t, 2, status.Entries)
	require.Equal(t, 3, status.Seen)
	latencies := hdrhistogram.Import(status.Latencies)
	require.EqualValues(t, 3, latencies.TotalCount())
	require.GreaterOrEqual(t, latencies.Min(), time.Minute.Microseconds()*99/100)
}

func TestRecordOutOfRange(t *testing.T) {
	h := NewHistogram()
	Record(h, -time.Second)
	Record(h, 2*time.Hour)
	require.EqualValues(t, 2, h.TotalCount())
}
