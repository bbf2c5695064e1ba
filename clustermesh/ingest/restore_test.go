// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestRestoredEndpointsWaitNoLonger than others do, although the cache is away and no
// Run begins.
func TestRestoredEndpointsWaitNoLonger(t *testing.T) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	local := NewLocal(Options{Log: slog.New(slog.DiscardHandler), Writer: writer, Local: ownCluster,
		HoldTimeout: 10 * time.Millisecond, RelistJitter: -1})
	waits := wire.Endpoint{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: 4711, Pod: "waits"}
	require.NoError(t, local.Restore(wire.Endpoints, []Entry{
		{Key: wire.EndpointKey(waits.Prefix), Value: must(wire.MarshalEndpoint(&waits)), Waits: true},
	}))
	require.Zero(t, writer.Tables().Endpoints.NumObjects(db.ReadTxn()))

	local.ExpireRestored(t.Context())
	row, _, found := writer.Tables().Endpoints.Get(db.ReadTxn(), state.EndpointByPrefix(waits.Prefix))
	require.True(t, found)
	require.Equal(t, waits.Pod, row.Pod())
	// That isn't the cache's word.
	done, _ := writer.Tables().Endpoints.Initialized(db.ReadTxn())
	require.False(t, done)
	select {
	case <-local.Ready():
		require.Fail(t, "nothing was read yet")
	default:
	}

	// It ends with its context.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	local.handler.options.HoldTimeout = time.Hour
	local.ExpireRestored(ctx)
}

// TestSaveBesideFirstRun: a snapshot may be taken at any time, and the race detector
// has a look.
func TestSaveBesideFirstRun(t *testing.T) {
	f := newLocalFixture(t, ownCluster)
	f.complete(wire.CacheResources...)
	ctx, cancel := context.WithCancel(t.Context())
	var saving sync.WaitGroup
	defer saving.Wait()
	defer cancel()
	saving.Go(func() {
		for ctx.Err() == nil {
			if saved := f.local.Save(); saved != nil {
				saved.Positions()
			}
		}
	})
	f.run(wire.CacheResources...)
	<-f.local.Ready()
	require.Eventually(t, func() bool { return f.local.Save() != nil }, patience, tick)
}
