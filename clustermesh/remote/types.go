// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package remote lives the life of remote clusters: it follows the directory of
// their etcd configurations, connects, checks the cluster config, watches over
// the connection, reconnects, and tells a Handler. KVStoreMesh and the agent's
// ingest are Handlers; they see neither files nor connections come and go.
//
//	types.go      the contract
//	snapshot.go   what changed in the configuration directory; pure
//	directory.go  the configuration directory, watched
//	cluster.go    one remote cluster: what it is told, and its reconnects
//	session.go    one connection: which etcd, which cluster config, is it alive
//	clients.go    the connections, which clusters may share
//	watchdog.go   heartbeats
//	refusals.go   what a Handler refuses of a cluster, counted and logged
//	reason.go     why a connection failed; pure
//	status.go     what row, health and metrics say about a cluster
//	mesh.go       all of them
//	ids.go        the cluster IDs in use
//	cell.go       flags and the wiring
package remote

import (
	"context"
	"net"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Connection is one established connection to a remote cluster's etcd whose
// cluster config has been read and checked.
type Connection struct {
	// Cluster is the remote cluster's name.
	Cluster string
	Client  *etcd.Client
	Config  wire.ClusterConfig
	// RawConfig is the config as read, with the fields we don't know.
	RawConfig []byte
}

// Handler takes in one remote cluster. Its methods are called one at a time,
// and never once the cluster's job has ended.
type Handler interface {
	// Run is called for each connection and works until ctx ends, which happens
	// when the connection is lost, the configuration or the cluster config
	// changed, the cluster is removed, or the process stops. An error (other
	// than ctx's own) makes a reconnect after a back-off, and so does a return
	// before ctx ended. State is kept between calls: a reconnect continues where
	// the last one was.
	//
	// A connection that comes back by itself within half a minute, even to
	// another etcd, is no reason to end Run as long as the cluster config is the
	// same: Readers and Writers notice it themselves.
	Run(ctx context.Context, conn Connection) error
	// Revoke is called once when the cluster has been away for longer than
	// --clustermesh-cache-ttl: what would send traffic there must go.
	Revoke(ctx context.Context)
	// Reset is called before Run when the cluster's ID is another one than
	// before: everything known is drained first.
	Reset(ctx context.Context)
	// Remove is called once, after the last Run, when the cluster's
	// configuration was removed. ctx ends when the process stops; if the
	// cluster comes back in the meantime, it waits for Remove to return.
	Remove(ctx context.Context)
}

// Factory makes the Handler of one remote cluster. It is called each time that
// a cluster is added, from one goroutine.
type Factory func(cluster string) Handler

// Dialer replaces the dialer of connections to remote clusters, if a hive has
// one. The address is host:port, or unix:/path. It is called concurrently.
type Dialer func(ctx context.Context, address string) (net.Conn, error)
