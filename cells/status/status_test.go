// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/job"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// part is a module whose health the test says.
type part struct {
	health cell.Health
	jobs   job.Group
}

// start makes a hive with the modules "ours" and "theirs".
func start(t *testing.T, host Host) (parts params, ours, theirs *part) {
	module := func(id string, to **part) cell.Cell {
		return cell.Module(id, "A part of the test", cell.Invoke(func(health cell.Health, jobs job.Group) {
			*to = &part{health, jobs}
		}))
	}
	h := hive.New(
		cell.Module("all", "All of ours", state.Cell, module("ours", &ours),
			cell.Provide(func() Host { return host }),
			cell.ProvidePrivate(newSince),
			cell.Invoke(func(p params) { parts = p })),
		module("theirs", &theirs),
	)
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError+1)) // a job is to fail
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	return parts, ours, theirs
}

// TestProblemSince is of the first report of a problem, however often it is told again,
// until it is over.
func TestProblemSince(t *testing.T) {
	parts, ours, _ := start(t, Host{})
	report := parts.report
	require.True(t, report().Healthy)
	scope := ours.health.NewScope("disk")
	scope.OK("Empty")
	require.True(t, report().Healthy)

	var first time.Time
	for i := range 3 {
		before := time.Now()
		scope.Degraded("Full", errors.New("no space"))
		r := report()
		require.False(t, r.Healthy)
		require.Len(t, r.Problems, 1)
		require.Equal(t, "all.ours.disk", r.Problems[0].Subject)
		require.Equal(t, "Full: no space", r.Problems[0].Reason)
		require.NotNil(t, r.Problems[0].Since)
		if i == 0 {
			first = *r.Problems[0].Since
			require.False(t, first.Before(before))
			require.Eventually(t, func() bool {
				parts.Since.mu.Lock()
				defer parts.Since.mu.Unlock()
				return len(parts.Since.began) == 1
			}, time.Minute, time.Millisecond, "the first one is noticed")
		}
		require.True(t, first.Equal(*r.Problems[0].Since))
	}
	scope.OK("Empty again")
	require.True(t, report().Healthy)
}

// TestProblemsOfHosts are the host's, but for the modules that are ours.
func TestProblemsOfHosts(t *testing.T) {
	for _, alone := range []bool{true, false} {
		host := Host{Module: "all"}
		if alone {
			host = Host{}
		}
		parts, ours, theirs := start(t, host)
		report := parts.report
		theirs.health.Degraded("Theirs", errors.New("broken"))
		require.Equal(t, !alone, report().Healthy)
		ours.health.Degraded("Ours", errors.New("broken"))
		require.False(t, report().Healthy)
		if !alone {
			require.Len(t, report().Problems, 1)
			require.Equal(t, "Ours: broken", report().Problems[0].Reason)
		}
	}
}

// TestProblemOfEndedJob: a job that has ended with an error is not well, and one that
// has ended is.
func TestProblemOfEndedJob(t *testing.T) {
	parts, ours, _ := start(t, Host{})
	ours.jobs.Add(
		job.OneShot("good", func(context.Context, cell.Health) error { return nil }),
		job.OneShot("bad", func(context.Context, cell.Health) error { return errors.New("broken") }),
	)
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		r := parts.report()
		if assert.Len(collect, r.Problems, 1) {
			assert.Equal(collect, "all.ours.job-bad", r.Problems[0].Subject)
			assert.Contains(collect, r.Problems[0].Reason, "broken")
		}
	}, time.Minute, 5*time.Millisecond)
}

// TestPrint has everything that a report may have.
func TestPrint(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	r := &Report{
		Cluster: "amber",
		Problems: []Problem{
			{Subject: "agent.clustermesh.job-remote-basil_etcd", Reason: "No connection\nto \x1b[31mremote cluster", Since: ago(90 * time.Second)},
			{Subject: "export of nodes", Reason: "not yet in etcd as a whole"},
		},
		Clusters: []Cluster{{Source: Source{
			Name: "basil", Since: ago(90 * time.Second), LastEvent: ago(2 * time.Minute), Problem: "refused",
			Resources: map[wire.Resource]Resource{wire.Nodes: {Synced: true, Entries: 3}, wire.Endpoints: {Entries: 7}},
			Refused:   map[wire.Reason]uint64{"size": 2, "foreign": 1},
		}}},
		Datastore: &Datastore{Source: Source{Connected: true, Synced: true, Since: ago(time.Hour)}, Kind: "etcd", Backend: "cache-0"},
		Exports:   []Export{{Resource: wire.Nodes, Pushed: 5, OnDemand: 1, NotGlobal: 2, Refused: 1}},
		Etcd:      &Etcd{Queue: 4, Refused: 1, LagSeconds: 1.5, Commits: 10, Changes: 100, Failures: 2, Leases: 1, Keys: 90, Prefixes: 6, Incomplete: 1},
		Lists:     &Lists{Open: 1, Served: 20, Postponed: 3},
		OnDemand:  &OnDemand{Enabled: true, Entries: map[string]int{"endpoint": 3, "identity": 1}, Waiting: 2},
		IPCache:   &IPCache{Map: "in-memory map", Capacity: 100, Wanted: 107, Overflow: 7},
	}
	var out strings.Builder
	require.NoError(t, r.Print(&out, now))
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	require.Equal(t, strings.TrimPrefix(`
Health:     not OK (2), see below
Cluster:    amber
Etcd:       90 keys on 1 leases, 5 of 6 prefixes complete
Queue:      4, 1 of them refused, 1.5s behind
Commits:    10 of 100 changes, 2 failed
Lists:      1 now, 20 served, 3 put off
Map:        in-memory map, 107 of 100 entries wanted, 7 don't fit, 0 failed
On demand:  3 endpoint, 1 identity, 2 wait

SOURCE               STATE                 SYNCED  NODES  IDENTITIES  ENDPOINTS  SERVICES  LAST DATA  REFUSED  PROBLEM
own (etcd, cache-0)  connected for 1h0m0s  yes     -      -           -          -         -          0        -
basil                away for 1m30s        no      3      -           7+         -         2m0s ago   3        refused

EXPORT  SYNCED  PUSHED  ON DEMAND  NOT GLOBAL  REFUSED
nodes   no      5       1          2           1

PROBLEM OF                               FOR    REASON
agent.clustermesh.job-remote-basil_etcd  1m30s  No connection to ?[31mremote cluster
export of nodes                          -      not yet in etcd as a whole`, "\n"), strings.Join(lines, "\n"))

	// As JSON, the same, and back.
	text, err := json.Marshal(r)
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, r, &back)
	text, err = json.Marshal(&Report{Healthy: true, Problems: []Problem{}})
	require.NoError(t, err)
	require.JSONEq(t, `{"healthy":true,"problems":[]}`, string(text), "what there isn't is left out")
}

// TestSameProblemOfSeveral is told of each cluster that has it, once; and what else is wrong
// with one that is connected isn't left out.
func TestSameProblemOfSeveral(t *testing.T) {
	r := &Report{}
	for _, name := range []string{"basil", "coral"} {
		r.problem("agent.clustermesh.job-remote-"+name+"_etcd", "No connection to remote cluster: refused", time.Time{})
	}
	for _, name := range []string{"basil", "coral", "dill"} {
		r.addCluster(&state.RemoteCluster{Name: name, LastError: "refused", Problem: "nor can it be read"})
	}
	r.addCluster(&state.RemoteCluster{Name: "basil", LastError: "refused", Problem: "nor can it be read", Connected: true})
	var subjects []string
	for _, p := range r.Problems {
		subjects = append(subjects, p.Subject)
	}
	require.Equal(t, []string{"agent.clustermesh.job-remote-basil_etcd", "agent.clustermesh.job-remote-coral_etcd", "cluster dill",
		"cluster basil"}, subjects)
}
