// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// report reads all of it. Cost: the rows of health and of remote clusters.
func (p params) report() *Report {
	txn := p.DB.ReadTxn()
	r := &Report{Cluster: p.Cluster.Name, Problems: []Problem{}}
	r.addHealth(txn, p)
	for row := range p.Clusters.All(txn) {
		r.addCluster(row)
	}
	if row, _, found := p.Datastore.Get(txn, state.TheDatastore()); found {
		r.addDatastore(row)
	}
	r.addExports(txn, p.Exports)
	if p.Writer != nil {
		r.addEtcd(p) // what is wrong with it is in health
	}
	if p.Lists != nil {
		stats := p.Lists.Stats()
		r.Lists = &Lists{Open: stats.Open, Served: stats.Ended, Postponed: stats.Postponed}
	}
	if p.OnDemand != nil {
		onDemand := p.OnDemand() // likewise
		r.OnDemand = &onDemand
	}
	if p.IPCache != nil {
		ipcache := p.IPCache() // likewise
		r.IPCache = &ipcache
	}
	r.Healthy = len(r.Problems) == 0
	return r
}

func (r *Report) problem(subject, reason string, since time.Time) {
	r.Problems = append(r.Problems, Problem{Subject: subject, Reason: reason, Since: when(since)})
}

// untold adds what is wrong with a source unless the health of the job that follows it,
// whose row is the last part of the name, has told of it with more words. Of one that is
// away the reason for that is enough: all else follows from it.
func (r *Report) untold(job, subject string, s *Source, row *state.RemoteCluster) {
	reason := s.unwell()
	if reason == "" {
		return
	}
	cause := reason
	if !row.Connected && row.LastError != "" {
		cause = row.LastError
	}
	if slices.ContainsFunc(r.Problems, func(p Problem) bool {
		return strings.HasSuffix(p.Subject, ".job-"+job) && strings.Contains(p.Reason, cause)
	}) {
		return
	}
	r.problem(subject, reason, s.unwellSince())
}

// addHealth takes over what our modules say of themselves.
func (r *Report) addHealth(txn statedb.ReadTxn, p params) {
	for row := range p.Health.All(txn) {
		if !unwell(&row) || !p.Host.has(row.ID.Module) {
			continue
		}
		reason := row.Message
		if row.Error != "" && row.Error != reason {
			reason += ": " + row.Error
		}
		r.problem(row.ID.String(), reason, p.Since.of(&row))
	}
}

// has says whether a module is ours.
func (h Host) has(module cell.FullModuleID) bool {
	return h.Module == "" || slices.Contains(module, h.Module)
}

func newSource(row *state.RemoteCluster) Source {
	s := Source{
		Name: row.Name, Connected: row.Connected, Synced: row.Ready,
		Since: when(row.Since), LastEvent: when(row.LastEvent),
		Resources: make(map[wire.Resource]Resource), Refused: row.Refused, Failures: row.Failures,
		Problem: row.Trouble(),
	}
	for resource, of := range row.Resources {
		if of.Enabled {
			s.Resources[resource] = Resource{Synced: of.Synced, Entries: of.Entries, Skipped: of.Skipped, Lists: of.Lists}
		}
	}
	return s
}

// unwell says why a source isn't as it should be, if it isn't. A resource that isn't
// synced doesn't matter where nobody waits for it: not all sources have all of them.
func (s *Source) unwell() string {
	switch {
	case s.Problem != "":
		return s.Problem
	case !s.Connected:
		return "not connected"
	case s.Synced:
		return ""
	}
	var waits []string
	for resource, of := range s.Resources {
		if !of.Synced {
			waits = append(waits, string(resource))
		}
	}
	slices.Sort(waits)
	return strings.TrimSuffix("not synced: "+strings.Join(waits, ", "), ": ")
}

func (r *Report) addCluster(row *state.RemoteCluster) {
	c := Cluster{
		Source: newSource(row), ID: row.ClusterID, Region: row.Region, Cached: row.Cached,
		Conflicts: row.Conflicts, HeldBack: row.HeldBack,
	}
	r.Clusters = append(r.Clusters, c)
	r.untold(state.RemoteClusterJob(c.Name), "cluster "+c.Name, &c.Source, row)
}

// unwellSince is when the connection was lost; of other problems health knows.
func (s *Source) unwellSince() time.Time {
	if s.Connected || s.Since == nil {
		return time.Time{}
	}
	return *s.Since
}

func (r *Report) addDatastore(row *state.Datastore) {
	if row.Off() {
		return
	}
	d := &Datastore{Source: newSource(&row.RemoteCluster), Kind: row.Kind, Backend: row.Backend}
	r.Datastore = d
	r.untold(state.DatastoreJob, "datastore", &d.Source, &row.RemoteCluster)
}

func (r *Report) addExports(txn statedb.ReadTxn, table statedb.Table[*state.Export]) {
	for row := range table.All(txn) {
		r.Exports = append(r.Exports, Export{
			Resource: row.Resource, Synced: row.Synced, Pushed: row.Pushed,
			OnDemand: row.OnDemand, NotGlobal: row.NotGlobal, Refused: row.Refused,
		})
		if !row.Synced {
			r.problem("export of "+string(row.Resource), "not yet in etcd as a whole", time.Time{})
		}
		if row.Refused > 0 {
			r.problem("export of "+string(row.Resource), fmt.Sprintf("%d can't be encoded", row.Refused), time.Time{})
		}
	}
}

func (r *Report) addEtcd(p params) {
	stats := p.Writer.Stats()
	e := &Etcd{
		Queue: stats.Pending, Refused: stats.Refused, LagSeconds: stats.Lag.Seconds(),
		Commits: stats.Commits, Changes: stats.Operations, Failures: stats.Failures, Leases: stats.Leases,
	}
	for _, scope := range p.Writer.ScopeStats() {
		e.Keys += scope.Keys
		if !scope.Loaded {
			continue // single keys
		}
		e.Prefixes++
		if !scope.Complete {
			e.Incomplete++
		}
	}
	r.Etcd = e
}

// when is a time for JSON, where zero is none.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
