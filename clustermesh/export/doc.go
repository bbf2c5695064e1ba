// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package export turns the state tables into Cilium's kvstore: what is local in
// the tables becomes cilium/state/… in the cluster's etcd, for other clusters
// (and, in the in-cluster cache, for this cluster's own agents) to read.
//
//	tables ─Changes─▶ follower (one a table) ─decide, encode─▶ etcd.Scope ─▶ cilium/state/…
//	namespaces ──────────▲ re-decides the objects of a namespace that flips
//	workloads ───────────▲ and the endpoints of a pod that says something else
//
// Where pods opt in, endpoints and identities have two Scopes each: what is pushed,
// and what is looked up on demand.
//
//	encode.go         a row as key and value; pure
//	decide.go         which rows leave the cluster, and where to; pure
//	workloads.go      what pods say
//	follower.go       one table → one Scope, or two
//	moves.go          from one of the two to the other, and never in neither
//	uses.go           which identities the pushed endpoints have
//	optin.go          ties endpoints and identities together
//	problems.go       what can't be encoded
//	exporter.go       all of them: rounds, initial sync, health
//	inbox.go          what the etcd.Writer tells: what is committed, and what etcd lost
//	counts.go         the table "exports"
//	clusterconfig.go  cilium/cluster-config/<name>
//	keptkey.go        a key that is kept as it should be, as that one
//	heartbeat.go      cilium/.heartbeat
//	explain.go        why a pod is or isn't synced; explain_text.go prints it
//	status.go         how much of each resource is synced
//	commands.go       both as commands of the shell
//	config.go         flags
//	cell.go           the wiring
//
// The exporter keeps no copy of what it exports: the tables hold the rows, the
// etcd.Writer a hash of each value. What etcd loses is encoded again. Only where pods
// opt in it knows the identity of each pushed endpoint.
package export
