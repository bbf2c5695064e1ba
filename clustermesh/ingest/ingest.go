// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package ingest takes clusters' state out of etcd and into the tables of
// cells/state. It is what an agent plugs into clustermesh/remote, as the Handler
// of each remote cluster; and what takes in its own cluster, from that one's
// in-cluster cache.
//
//	ingest.go    Options, and the Factory of Handlers
//	local.go     this cluster
//	handler.go   one cluster: its Readers through connects, resets and removal
//	observer.go  one batch of etcd events is one transaction
//	codec.go     how each resource is decoded, checked and applied
//	heldback.go  endpoints that wait for their identity; pure
//	status.go    the row in remote-clusters or datastore, and the log of what was refused
//	startup.go   when the tables count as initialized
//	saved.go     what is known of this cluster, for a later process
//	restore.go   what an earlier process knew
//	cell.go      the wiring
//
// # What is refused
//
// Remote input is hostile: each value is decoded and checked on its own
// (wire.Validator), and one that is refused affects its own key and no other. It
// is counted by reason in remote-clusters and logged at a limited rate. What
// becomes of the row that the key had before depends on what the refused value
// tells (see withdraws):
//
//   - nothing can be read out of it (malformed, too large, meant for another
//     key): the old row stays, as upstream has it. A source that writes nonsense
//     for a while must not cost connections that work;
//   - it can be read, and claims what the cluster may not (another cluster's
//     identity, name or ID): the old row goes, for it isn't what the cluster says
//     any more. An address that kept its last acceptable identity could be
//     another workload's by now, and policy would take it for the old one;
//   - an identity goes for every reason, for the same one, and at once.
//
// An identity that is deleted, rather than refused, stays until no endpoint uses it:
// the watch of identities may be ahead of that of endpoints.
//
// A key whose value is corrected is taken in as any other change, and the
// deletion of a key that has no row does nothing.
package ingest

import (
	"log/slog"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// DefaultHoldTimeout bounds how long an endpoint waits for its identity. A
	// watch that has to be made anew, with a list and its jitter of a second,
	// takes a few seconds, so that an identity which takes longer than this is
	// one that isn't coming.
	DefaultHoldTimeout = 10 * time.Second
	// defaultHoldLimit bounds how many endpoints of one cluster wait at once. At
	// some 400 bytes each that is 3 MB, for a source that names identities which
	// don't exist.
	defaultHoldLimit = 8192
	// positionInterval is how often an etcd is asked how far a resource is of which
	// nothing changes. An embedded etcd keeps ten minutes of history.
	positionInterval = time.Minute
	// concurrentLists bounds the lists that are read at once over all clusters.
	// A page is 4 MiB of values and as much again decoded; two cores are busy
	// with two of them.
	concurrentLists = 4
)

// Options are what all Handlers of a process share.
type Options struct {
	Log    *slog.Logger
	Writer *state.Writer
	// Local is this cluster; its MaxConnectedClusters divides the identities.
	Local wire.ClusterInfo
	// Startup, if set, is told which clusters have been taken in.
	Startup *Startup
	// HoldTimeout is how long an endpoint waits for its identity, and HoldLimit how many
	// of one cluster do at once; 0 is DefaultHoldTimeout, and 8192.
	HoldTimeout time.Duration
	HoldLimit   int
	// RelistJitter is that of etcd.ReaderConfig.
	RelistJitter time.Duration

	lists          *semaphore.Weighted
	statusInterval time.Duration
	// settled is called once, when a cluster is taken in; see Startup.
	settled func()
}

// complete fills in what was left out.
func (o *Options) complete() {
	if o.HoldTimeout == 0 {
		o.HoldTimeout = DefaultHoldTimeout
	}
	if o.HoldLimit == 0 {
		o.HoldLimit = defaultHoldLimit
	}
	if o.statusInterval == 0 {
		o.statusInterval = statusInterval
	}
	o.lists = semaphore.NewWeighted(concurrentLists)
}

// NewFactory gives the Factory of Handlers that fill the tables of o.Writer. The
// Factory may be called from any goroutine.
func NewFactory(o Options) remote.Factory {
	o.complete()
	return func(cluster string) remote.Handler {
		if o.Startup != nil {
			o.Startup.expect(cluster)
		}
		return newHandler(&o, cluster)
	}
}
