// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/export"
)

const cachePrefix = "waggle_incluster_cache_"

var (
	cacheLists     = gauge(cachePrefix+"lists", "Lists that the embedded etcd serves now")
	cacheEnded     = counter(cachePrefix+"lists_total", "Lists that it has served")
	cachePostponed = counter(cachePrefix+"lists_postponed_total", "Answers that put a list off, since as many were served as may be at once")
	cacheAbandoned = counter(cachePrefix+"lists_abandoned_total", "Lists that lost their place, since nobody asked for their next page")
	cacheDuration  = gauge(cachePrefix+"list_duration_seconds", "How long a list takes, smoothed")
	cacheKeys      = gauge(cachePrefix+"keys", "Keys in etcd", "resource")
	cacheCommits   = counter(cachePrefix+"commits_total", "Transactions made in etcd; each is a message to each agent")
	cacheChanges   = counter(cachePrefix+"changes_total", "Changes of keys that they held")
	cachePending   = gauge(cachePrefix+"pending_changes", "Changes that are not in etcd yet")
	cacheFailures  = counter(cachePrefix+"commit_failures_total", "Transactions that failed and were tried again")
)

// cache is what an in-cluster cache holds and serves.
var cache = newSource("incluster-cache", "What an in-cluster cache serves as metrics",
	[]desc{cacheLists, cacheEnded, cachePostponed, cacheAbandoned, cacheDuration,
		cacheKeys, cacheCommits, cacheChanges, cachePending, cacheFailures},
	func(s *source, bound *etcd.ListBound, writer *etcd.Writer, exporter *export.Exporter) {
		s.read = func(ch into) {
			lists, writes := bound.Stats(), writer.Stats()
			ch.put(cacheLists, float64(lists.Open))
			ch.put(cacheEnded, float64(lists.Ended))
			ch.put(cachePostponed, float64(lists.Postponed))
			ch.put(cacheAbandoned, float64(lists.Abandoned))
			ch.put(cacheDuration, lists.Duration.Seconds())
			for resource, count := range exporter.Counts() {
				ch.put(cacheKeys, float64(count), string(resource))
			}
			ch.put(cacheCommits, float64(writes.Commits))
			ch.put(cacheChanges, float64(writes.Operations))
			ch.put(cachePending, float64(writes.Pending))
			ch.put(cacheFailures, float64(writes.Failures))
		}
	},
)
