// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package inclustercache has an agent read its own cluster's state from a
// dedicated etcd instead of the API server.
//
//	datastore.go  the agent's choice between Kubernetes and etcd, and its flags
//	agent.go      the wiring of an agent
//	follower.go   the agent's side of the cache: from replica to replica
//	session.go    one connection to one replica
//	replicas.go   which replica an agent prefers; pure
//	source.go     what is known about the datastore: row, health, metrics
package inclustercache
