// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestScenarios restarts KVStoreMesh and replaces its sources: a restart writes
// nothing, and a switch what differs. It says nothing about speed.
func TestScenarios(t *testing.T) {
	t.Parallel()
	mesh := Mesh{Clusters: 2, Endpoints: 600, Nodes: 3, Identities: 7, Services: 4, Seed: 5}
	for _, layout := range []Layout{LayoutState, LayoutCache} {
		t.Run(string(layout), func(t *testing.T) {
			report, err := KVStoreMesh(t.Context(), Config{
				Mesh: mesh, Layout: layout, CacheEtcds: 1, Rounds: 2, Timeout: time.Minute, Program: os.Args[0],
				Log: hivetest.Logger(t), Scenarios: Scenarios,
			})
			require.NoError(t, err)
			require.Len(t, report.Rounds, 2)
			for _, f := range report.Rounds {
				for _, ends := range []float64{f.Phases.Connect, f.Phases.List, f.Phases.Write, f.Phases.Canary} {
					require.Positive(t, ends)
				}
				require.LessOrEqual(t, f.PhasesBegan.Connect, f.Phases.Connect)
				require.LessOrEqual(t, f.PhasesBegan.List, f.Phases.List)
				require.LessOrEqual(t, f.PhasesBegan.Write, f.Phases.Write)
				require.LessOrEqual(t, f.PhasesBegan.Canary, f.Phases.Canary)
				// Ready is seen by another observer than the phases, and may come first.

				require.Zero(t, f.Restart.Changed)
				require.Zero(t, f.Restart.Writes.All(), "nothing had changed")
				require.Zero(t, f.Restart.Writes.Commits)
				require.Positive(t, f.Restart.Seconds)
				require.Positive(t, f.Restart.CPUSeconds)

				require.Equal(t, mesh.Keys()/100, f.Switch.Changed)
				require.Equal(t, f.Switch.Changed, f.Switch.Writes.All(), "what had changed, and that alone")
				require.Equal(t, mesh.Clusters*2, f.Switch.Writes.Deletes)
				require.Positive(t, f.Switch.Writes.Commits)
				require.Positive(t, f.Switch.Seconds)
			}
			raw, err := json.Marshal(report)
			require.NoError(t, err)
			var read struct {
				Waggle struct {
					Phases          map[string]float64
					Restart, Switch map[string]any
				}
			}
			require.NoError(t, json.Unmarshal(raw, &read))
			require.Contains(t, read.Waggle.Phases, "connect")
			require.Contains(t, read.Waggle.Restart, "writes")
			require.Contains(t, read.Waggle.Switch, "cpu_seconds")
			var text strings.Builder
			require.NoError(t, report.WriteText(&text))
			require.Regexp(t, `restart: writes +0 +0 +0`, text.String())
			require.Regexp(t, `switch: keys that differ +12 +12 +12`, text.String())
		})
	}
}

func TestScenariosAreRefused(t *testing.T) {
	_, err := KVStoreMesh(t.Context(), Config{Mesh: DefaultMesh, Scenarios: []string{"crash"}})
	require.ErrorContains(t, err, `scenario "crash": must be one`)
	mesh := DefaultMesh
	mesh.Endpoints = 0
	_, err = KVStoreMesh(t.Context(), Config{Mesh: mesh, Scenarios: []string{ScenarioSwitch}})
	require.ErrorContains(t, err, "needs endpoints")
}

// TestPhases takes phases from a series of looks at the sockets.
func TestPhases(t *testing.T) {
	began := time.Now()
	at := func(seconds int, connections int, listed, written uint64) traffic {
		return traffic{began.Add(time.Duration(seconds) * time.Second), connections, listed, written}
	}
	ends, begins := phasesOf([]traffic{
		at(1, 0, 0, 0), at(2, 1, 5, 0), at(3, 2, 10, 1), at(4, 3, 500, 100), at(5, 3, 985, 600), at(6, 3, 990, 1000), at(7, 3, 1000, 1000),
	}, began, 3)
	require.Equal(t, Phases{Connect: 4, List: 6, Write: 6}, ends)
	require.Equal(t, Phases{Connect: 2, List: 3, Write: 4}, begins)
	ends, _ = phasesOf(nil, began, 3)
	require.Zero(t, ends)
	ends, _ = phasesOf([]traffic{at(1, 0, 0, 0)}, began, 3)
	require.Equal(t, Phases{Connect: 1}, ends)
}

func TestWrites(t *testing.T) {
	event := func(revision int64, deleted bool, key string) *clientv3.Event {
		ev := &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}
		if deleted {
			ev.Type = clientv3.EventTypeDelete
		}
		return ev
	}
	var w Writes
	w.add([]*clientv3.Event{
		event(5, false, "cilium/cache/nodes/v1/a/b"), event(5, true, "cilium/cache/nodes/v1/a/c"), event(5, false, "cilium/synced/a/x"),
		event(6, false, "cilium/.heartbeat"), event(7, false, "cilium/cluster-config/a"), event(8, false, "cilium/lock"),
	}, 0)
	require.Equal(t, Writes{Commits: 3, Puts: 1, Deletes: 1, Canaries: 1, Configs: 1, Others: 1, Heartbeats: 1}, w)
	require.Equal(t, 5, w.All())
}
