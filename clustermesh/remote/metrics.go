// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
)

// ClusterMetrics are upstream's (pkg/clustermesh/common.Metrics), and convert from them,
// so that a hive that has upstream's shows ours by them.
type ClusterMetrics struct {
	TotalRemoteClusters   metric.Gauge
	LastFailureTimestamp  metric.Vec[metric.Gauge]
	ReadinessStatus       metric.Vec[metric.Gauge]
	TotalFailures         metric.Vec[metric.Gauge]
	TotalCacheRevocations metric.Vec[metric.Gauge]
}

// Metrics provides upstream's metrics of remote clusters
// (…_remote_cluster_failures and others), in upstream's subsystem: "clustermesh"
// in an agent, none in KVStoreMesh. A hive without it has none of them; one that
// has upstream's clustermesh cell provides those as ClusterMetrics.
func Metrics(subsystem string) cell.Cell {
	return metrics.Metric(func() ClusterMetrics { return newClusterMetrics(subsystem) })
}

func newClusterMetrics(subsystem string) ClusterMetrics {
	opts := func(name, help string) metric.GaugeOpts {
		return metric.GaugeOpts{Namespace: metrics.Namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	ofCluster := func(name, help string) metric.Vec[metric.Gauge] {
		return metric.NewGaugeVec(opts(name, help), []string{metrics.LabelTargetCluster})
	}
	return ClusterMetrics{
		TotalRemoteClusters:   metric.NewGauge(opts("remote_clusters", "Remote clusters in the mesh")),
		LastFailureTimestamp:  ofCluster("remote_cluster_last_failure_ts", "When the connection to the remote cluster last failed"),
		ReadinessStatus:       ofCluster("remote_cluster_readiness_status", "Whether the remote cluster is ready"),
		TotalFailures:         ofCluster("remote_cluster_failures", "How often the connection to the remote cluster has failed"),
		TotalCacheRevocations: ofCluster("remote_cluster_cache_revocations", "How often what was read of the remote cluster was withdrawn"),
	}
}
