// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/metrics"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

const etcdPrefix = "waggle_etcd_"

var (
	etcdQueue    = gauge(etcdPrefix+"queue", "Changes of keys that are not in etcd yet")
	etcdRefused  = gauge(etcdPrefix+"refused_changes", "Those of them that etcd refuses by themselves")
	etcdLag      = gauge(etcdPrefix+"lag_seconds", "For how long the oldest change that etcd doesn't refuse has waited")
	etcdCommits  = counter(etcdPrefix+"commits_total", "Transactions made")
	etcdChanges  = counter(etcdPrefix+"changes_total", "Changes of keys that they held")
	etcdFailures = counter(etcdPrefix+"commit_failures_total", "Transactions that failed and were tried again")
	etcdLeases   = gauge(etcdPrefix+"leases", "Leases that are kept alive")
	etcdKeys     = gauge(etcdPrefix+"keys", "Keys that are known to be in etcd, canaries included")
)

// writer is what a Writer has done and is yet to do.
var writer = newSource("etcd", "What is written to the local etcd as metrics",
	[]desc{etcdQueue, etcdRefused, etcdLag, etcdCommits, etcdChanges, etcdFailures, etcdLeases, etcdKeys},
	func(s *source, w *etcd.Writer) {
		durations := &operationDurations{}
		w.OnCommit(durations.add)
		s.read = func(ch into) {
			durations.flush()
			stats := w.Stats()
			ch.put(etcdQueue, float64(stats.Pending))
			ch.put(etcdRefused, float64(stats.Refused))
			ch.put(etcdLag, stats.Lag.Seconds())
			ch.put(etcdCommits, float64(stats.Commits))
			ch.put(etcdChanges, float64(stats.Operations))
			ch.put(etcdFailures, float64(stats.Failures))
			ch.put(etcdLeases, float64(stats.Leases))
			keys := 0
			for _, scope := range w.ScopeStats() {
				keys += scope.Keys
			}
			ch.put(etcdKeys, float64(keys))
		}
	},
)

// operationDurations feeds upstream's kvstore_operations_duration_seconds: a commit is
// one observation for each prefix that it sets or deletes keys of.
//
// Upstream's vector is a global, which some hosts replace while they start. It is looked
// at when metrics are asked for, which is later; until then commits wait.
type operationDurations struct {
	mu      sync.Mutex
	waiting []observation
}

type observation struct {
	scope, kind, outcome string
	took                 time.Duration
}

// maxObservations bounds those that wait, where nobody asks. The oldest stay: nobody has
// seen those that follow either.
const maxObservations = 10_000

func (d *operationDurations) add(c etcd.Commit) {
	outcome := metrics.Error2Outcome(c.Err)
	d.mu.Lock()
	defer d.mu.Unlock()
	for kind, prefixes := range map[string][]string{"set": c.Puts, "delete": c.Deletes} {
		for _, prefix := range prefixes {
			if len(d.waiting) < maxObservations {
				d.waiting = append(d.waiting, observation{scopeOf(prefix), kind, outcome, c.Took})
			}
		}
	}
}

func (d *operationDurations) flush() {
	d.mu.Lock()
	waiting := d.waiting
	d.waiting = nil
	d.mu.Unlock()
	vec := metrics.KVStoreOperationsDuration
	if !vec.IsEnabled() {
		return
	}
	for _, o := range waiting {
		vec.WithLabelValues(o.scope, o.kind, "txn", o.outcome).Observe(o.took.Seconds())
	}
}

// scopeOf names a prefix as upstream's metrics do: "ip/v1". Canaries are below the
// prefix "", and are called what upstream calls theirs.
func scopeOf(prefix string) string {
	if prefix == "" {
		return "synced"
	}
	return kvstore.GetScopeFromKey(prefix)
}
