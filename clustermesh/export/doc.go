// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package export turns the state tables into Cilium's kvstore: what is local in
// the tables becomes cilium/state/… in the cluster's etcd, for other clusters
// (and, in the in-cluster cache, for this cluster's own agents) to read.
//
//	tables ─Changes─▶ follower (one a table) ─decide, encode─▶ etcd.Scope ─▶ cilium/state/…
//	namespaces ──────────▲ re-decides the objects of a namespace that flips
//
//	encode.go         a row as key and value; pure
//	decide.go         which rows leave the cluster; pure
//	follower.go       one table → one Scope
//	exporter.go       all of them: rounds, initial sync, health
//	refill.go         what etcd lost and is written again
//	clusterconfig.go  cilium/cluster-config/<name>
//	keptkey.go        a key that is kept as it should be, as that one
//	heartbeat.go      cilium/.heartbeat
//	config.go         flags
//	cell.go           the wiring
//
// The exporter keeps no copy of what it exports: the tables hold the rows, the
// etcd.Writer a hash of each value. What etcd loses is encoded again.
package export
