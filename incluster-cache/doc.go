// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package inclustercache serves a cluster's state to the cluster's own agents from
// a dedicated etcd, instead of one watch of the API server by each agent on each
// resource, and has an agent read that.
//
// The cache:
//
//	server.go     the wiring of a cache
//	offer.go      what it offers, and its other flags
//	claim.go      which etcds it may write to
//
// The agent:
//
//	datastore.go  the choice between Kubernetes and etcd, and its flags
//	agent.go      the wiring of an agent
//	follower.go   the agent's side of the cache: from replica to replica
//	session.go    one connection to one replica
//	directory.go  the replicas that are known
//	service.go    the backends of a cache that is named as a Service
//	replicas.go   which replica an agent prefers; pure
//	source.go     what is known about the cache as a source: row, health
//	reflected.go  the same of Kubernetes
//	snapshot.go   an agent's state on disk: the format; pure
//	snapshot_file.go   its file, replaced as a whole
//	snapshot_job.go    when it is written and restored
//	program.go    which build has written it
package inclustercache
