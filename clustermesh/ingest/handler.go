// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// handler takes in one cluster: it is the remote.Handler of a remote one, or works
// for a Local. It has one Reader for each resource, which outlives connections: a
// reconnect brings the difference only.
//
// Run, Reset, Revoke and Remove are called one at a time; what only they touch
// needs no lock. While Run runs, the Readers call apply on their goroutines.
type handler struct {
	options *Options
	cluster string
	// own: it is this cluster, not a remote one.
	own bool
	// group is the one watch of all Readers; nil: each has its own.
	group *etcd.WatchGroup
	log   *slog.Logger

	// These change between Runs only, and under mu as well: save reads them at any time.
	layout    layout
	streams   []*stream
	origin    *state.Origin
	validator *wire.Validator

	mu     sync.Mutex
	now    time.Time // of the apply or tick that runs
	held   *heldBack
	status status
	// leaving are restored identities that the source no longer has; see releaseRestored.
	leaving []uint32
	// settleBy is when the start no longer waits for endpoints that are held back;
	// zero before all resources are synced for the first time.
	settleBy time.Time
	settled  bool
	// identitiesRead is closed once identities are complete in this Run.
	identitiesRead chan struct{}
	// wake makes tend look at its deadlines again.
	wake chan struct{}
}

// layout is what decides where a cluster's keys are, and what they may say. With
// another one, what the Readers know is of no use.
type layout struct {
	clusterID uint32
	cached    bool
	canaries  bool
}

// offer is what a source has, and how.
type offer struct {
	layout
	// resources are those that it has; what it has not is not read.
	resources []wire.Resource
}

// ingested are the resources that have a table.
var ingested = []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints, wire.Services, wire.ServiceExports}

// offerOf is what a remote cluster says about itself: all, but service exports only
// if it says anything about them.
func offerOf(config wire.ClusterConfig) offer {
	o := offer{
		layout:    layout{clusterID: config.ID, cached: config.Capabilities.Cached, canaries: config.Capabilities.SyncedCanaries},
		resources: ingested,
	}
	if config.Capabilities.ServiceExportsEnabled == nil {
		o.resources = slices.DeleteFunc(slices.Clone(ingested), func(r wire.Resource) bool { return r == wire.ServiceExports })
	}
	return o
}

// stream is one resource of the cluster.
type stream struct {
	resource wire.Resource
	reader   *etcd.Reader
	// enabled: the source offers it. Status reads it, so it is under the
	// handler's mu.
	enabled bool
	// position is where the Reader was when the tables had just what it had
	// delivered; nil in between. It is under the handler's mu.
	position *etcd.Position
	// restore takes in what an earlier process had, and says how much of it.
	restore  func([]Entry) int
	restored int
}

func newHandler(options *Options, cluster string) *handler {
	h := &handler{
		options: options,
		cluster: cluster,
		log:     options.Log.With("cluster", cluster),
		held:    newHeldBack(options.HoldTimeout, options.HoldLimit),
		wake:    make(chan struct{}, 1),
	}
	h.status.init(options.statusInterval)
	return h
}

// Run implements remote.Handler.
func (h *handler) Run(ctx context.Context, conn remote.Connection) error {
	return h.follow(ctx, conn.Client, offerOf(conn.Config))
}

// follow takes in what client's etcd offers until ctx ends.
func (h *handler) follow(ctx context.Context, client *etcd.Client, from offer) error {
	if h.adopt(ctx, from); ctx.Err() != nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.tend(ctx) })
	for _, s := range h.streams {
		if !s.enabled {
			continue
		}
		group.Go(func() error {
			if s.resource == wire.Endpoints {
				h.awaitIdentities(ctx)
			}
			if err := s.reader.Run(ctx, client); err != nil {
				return fmt.Errorf("reading %s of cluster %q: %w", s.resource, h.cluster, err)
			}
			return nil
		})
	}
	err := group.Wait()
	h.rest()
	return err
}

// adopt prepares the Readers for what is offered. It may leave off when ctx ends;
// the next Run continues.
func (h *handler) adopt(ctx context.Context, from offer) {
	next := from.layout
	if h.streams != nil && next != h.layout {
		h.log.Info("Layout of remote cluster changed: draining what is known of it",
			"cluster-id", next.clusterID, "cached", next.cached, "synced-canaries", next.canaries)
		if !h.drain(ctx, allStreams) {
			return
		}
		h.setStreams(nil)
	}
	if h.streams == nil {
		h.prepare(next)
	}
	missing := func(s *stream) bool { return !slices.Contains(from.resources, s.resource) }
	h.mu.Lock()
	for _, s := range h.streams {
		s.enabled = !missing(s)
	}
	h.mu.Unlock()
	if slices.ContainsFunc(h.streams, missing) && !h.drain(ctx, missing) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.releaseRestored() // if there were no endpoints to come back
	h.identitiesRead = make(chan struct{})
	h.now = time.Now()
	h.statusChanged(true)
}

// prepare makes the Readers of a layout.
func (h *handler) prepare(next layout) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.layout = next
	if h.own {
		h.origin = h.options.Writer.Origin(h.cluster, next.clusterID, state.SourceLocal)
		h.validator = wire.NewOwnValidator(h.cluster, next.clusterID)
	} else {
		h.origin = h.options.Writer.Origin(h.cluster, next.clusterID, state.SourceClusterMesh)
		h.validator = wire.NewValidator(h.cluster, next.clusterID, h.options.Local.MaxConnectedClusters)
	}
	h.streams = []*stream{
		newStream(h, wire.Identities, h.identityCodec()),
		newStream(h, wire.Nodes, h.nodeCodec()),
		newStream(h, wire.Endpoints, h.endpointCodec()),
		newStream(h, wire.Services, h.serviceCodec()),
		newStream(h, wire.ServiceExports, h.serviceExportCodec()),
	}
}

func (h *handler) setStreams(streams []*stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams = streams
}

func newStream[T any](h *handler, resource wire.Resource, codec codec[T]) *stream {
	cfg := etcd.ReaderConfig{
		Log:          h.log,
		Prefix:       wire.Prefix(resource, h.cluster, h.layout.cached),
		RelistJitter: h.options.RelistJitter,
		Lists:        h.options.lists,
		ReadAhead:    true,
	}
	if h.layout.canaries {
		cfg.Canary = wire.CanaryKey(resource, h.cluster, h.layout.cached)
	}
	if h.own {
		cfg.Progress = positionInterval
		cfg.Group = h.group
	}
	o := &observer[T]{handler: h, resource: resource, codec: codec}
	reader := etcd.NewReader(cfg, o)
	return &stream{
		resource: resource,
		reader:   reader,
		restore:  func(entries []Entry) int { return o.restore(reader, entries) },
	}
}

// awaitIdentities lets the first list of endpoints come after that of
// identities, so that it need not be held back. It waits here rather than for
// each batch because a list that is under way keeps others from starting.
func (h *handler) awaitIdentities(ctx context.Context) {
	for _, s := range h.streams {
		if s.resource == wire.Identities && s.reader.Synced() {
			return // they were complete in an earlier Run
		}
	}
	timer := time.NewTimer(h.options.HoldTimeout)
	defer timer.Stop()
	select {
	case <-h.identitiesRead:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// identitiesComplete is called with mu held, after each resynchronisation.
func (h *handler) identitiesComplete() {
	select {
	case <-h.identitiesRead:
	default:
		close(h.identitiesRead)
	}
}

// tend applies endpoints whose time to wait is over, and writes the status that
// was put off, until ctx ends.
func (h *handler) tend(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.NewTicker(problemInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-timer.C:
		case <-look.C:
			h.lookForProblems(time.Now())
		}
		if next, ok := h.tick(time.Now()); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// tick does what is due at now and says when there is more to do.
func (h *handler) tick(now time.Time) (next time.Time, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = now
	h.applyLate(h.held.expire(now, nil))
	if h.status.due(now) {
		h.writeStatus()
	}
	next, ok = h.held.next()
	if at, later := h.status.next(); later && (!ok || at.Before(next)) {
		next, ok = at, true
	}
	return next, ok
}

// applyLate applies endpoints without their identity. It is called with mu held.
func (h *handler) applyLate(endpoints []wire.Endpoint) {
	if len(endpoints) == 0 {
		return
	}
	tx := h.options.Writer.Begin()
	for i := range endpoints {
		h.upsertEndpoint(tx, endpoints[i])
	}
	tx.Commit()
	h.status.late += uint64(len(endpoints))
	h.statusChanged(false)
}

// rest ends a Run. Without a connection no identity can arrive, so that what
// waits for one doesn't wait any longer.
func (h *handler) rest() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = time.Now()
	h.applyLate(h.held.all(nil))
	h.writeStatus()
}

// Revoke implements remote.Handler: what would send traffic to the cluster goes,
// and the next Run reads it anew.
func (h *handler) Revoke(ctx context.Context) {
	h.drain(ctx, only(wire.Services, wire.ServiceExports))
}

// Reset implements remote.Handler.
func (h *handler) Reset(ctx context.Context) {
	if h.drain(ctx, allStreams) {
		h.setStreams(nil)
	}
}

// Remove implements remote.Handler. When ctx ends, the process is stopping, and
// what is left in the tables is meant to outlive it in the datapath.
func (h *handler) Remove(ctx context.Context) {
	if h.options.Startup != nil {
		h.options.Startup.settle(h.cluster)
	}
	if !h.drain(ctx, allStreams) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams = nil
	tx := h.options.Writer.Begin()
	tx.DeleteRemoteCluster(h.cluster)
	tx.Commit()
}

// dropLeaving removes the identities that outlive their key in etcd, and that no
// Reader knows of any more, whoever uses them.
func (h *handler) dropLeaving() {
	tx := h.options.Writer.Begin()
	tx.DeleteOrigin(h.origin, wire.Identities)
	tx.Commit()
}

func allStreams(*stream) bool { return true }

func only(resources ...wire.Resource) func(*stream) bool {
	return func(s *stream) bool { return slices.Contains(resources, s.resource) }
}

// drain removes the rows of some streams, consumers of a resource before what
// they refer to. It says whether it came to the end before ctx did.
func (h *handler) drain(ctx context.Context, which func(*stream) bool) bool {
	for _, s := range slices.Backward(h.streams) {
		if ctx.Err() != nil {
			return false
		}
		if which(s) {
			s.reader.Drain(ctx)
			if s.resource == wire.Identities {
				h.dropLeaving()
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = time.Now()
	h.statusChanged(true)
	return true
}
