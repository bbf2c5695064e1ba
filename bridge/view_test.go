// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestCanaryOfEndpoints: they are complete when those are in the tables that waited for
// their identities when the last one came, whoever waits after that. The clock is the
// test's own.
func TestCanaryOfEndpoints(t *testing.T) {
	const second = time.Second
	for name, test := range map[string]struct {
		// synced is when the endpoints are; held gives how many wait at a time.
		synced time.Duration
		held   func(at time.Duration) int
		want   time.Duration
	}{
		"none waits":              {held: func(time.Duration) int { return 0 }},
		"all come":                {held: func(at time.Duration) int { return max(0, 3-int(at/second)) }, want: 3 * second},
		"there are always others": {held: func(at time.Duration) int { return 1 + int(at/second)%2 }, want: heldPatience},
		"they wait from before":   {synced: 5 * second, held: func(time.Duration) int { return 2 }, want: 5*second + heldPatience},
		"others come later": {
			synced: 5 * second, held: func(at time.Duration) int { return min(1, int(at/(6*second))) }, want: 5 * second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := statedb.New()
				writer, err := state.NewWriter(db)
				require.NoError(t, err)
				start := time.Now()
				update := func() {
					tx := writer.Begin()
					tx.UpdateRemoteCluster("north", func(row *state.RemoteCluster) {
						at := time.Since(start)
						row.Resources[wire.Identities] = state.ResourceState{Enabled: true, Synced: true}
						row.Resources[wire.Endpoints] = state.ResourceState{Enabled: true, Synced: at >= test.synced}
						row.HeldBack = test.held(at)
					})
					tx.Commit()
				}
				update()
				v := &view{log: slog.New(slog.DiscardHandler), of: &clusters{db: db, tables: writer.Tables()}, cluster: "north"}
				v.ctx, v.close = context.WithCancel(t.Context())
				defer v.Close()
				go func() {
					tick := time.NewTicker(second)
					defer tick.Stop()
					for {
						select {
						case <-tick.C:
							update()
						case <-v.ctx.Done():
							return
						}
					}
				}()

				ctx, cancel := context.WithTimeout(v.ctx, time.Hour)
				defer cancel()
				at := map[string]time.Duration{}
				for event := range v.ListAndWatch(ctx, wire.SyncedPrefix("north")) {
					if event.Typ == kvstore.EventTypeListDone {
						continue
					}
					require.Equal(t, kvstore.EventTypeCreate, event.Typ)
					at[event.Key] = time.Since(start)
					if len(at) == 2 {
						break
					}
				}
				require.Equal(t, map[string]time.Duration{
					wire.CanaryKey(wire.Identities, "north", false): 0,
					wire.CanaryKey(wire.Endpoints, "north", false):  test.want,
				}, at)
			})
		})
	}
}
