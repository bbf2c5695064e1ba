// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"net/netip"
	"time"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// statusInterval is the least time between two writes of a cluster's row in
	// remote-clusters, unless something became synced: 500 busy clusters then
	// make 2,500 small transactions a second, not one more for each event.
	statusInterval = 200 * time.Millisecond
	// contestedIntervals is how many of those pass between two looks at a cluster
	// that claims what others hold: when they give it up, no event of this
	// cluster says so.
	contestedIntervals = 25
	// problemInterval is how often a cluster in which nothing changes is looked
	// at for what may keep it from changing.
	problemInterval = 2 * time.Second
)

// status is what a handler knows for its row in remote-clusters. It is under the
// handler's mu.
type status struct {
	*remote.Refusals
	lastEvent time.Time
	// late counts the endpoints taken in without their identity, and lateLogged
	// those of them that the log was told of.
	late, lateLogged uint64
	// problem is what the row says keeps the data from being up to date.
	problem string
	// conflict is the last address that another cluster holds, until it is logged.
	conflict netip.Prefix

	dirty bool
	// contested: the row that was written has conflicts.
	contested bool
	written   time.Time
	interval  time.Duration
}

func (s *status) init(interval time.Duration) {
	s.interval = interval
	s.Refusals = remote.NewRefusals()
}

// next is when the row is to be written; ok is false if it needn't be.
func (s *status) next() (at time.Time, ok bool) {
	switch {
	case s.dirty:
		return s.written.Add(s.interval), true
	case s.contested:
		return s.written.Add(contestedIntervals * s.interval), true
	}
	return time.Time{}, false
}

func (s *status) due(now time.Time) bool {
	at, ok := s.next()
	return ok && !now.Before(at)
}

// statusChanged is called with mu held after anything that the row shows; it
// writes the row now, or has tend write it. urgent is for what others wait for.
func (h *handler) statusChanged(urgent bool) {
	h.logProblems()
	h.status.dirty = true
	if urgent || h.status.due(h.now) {
		h.writeStatus()
	}
	// Otherwise, and for endpoints that began to wait, tend has a deadline.
	if _, later := h.status.next(); later || h.held.len() > 0 {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// lookForProblems has the row written if a prefix can no longer be read, or can
// again.
func (h *handler) lookForProblems(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.problem() != h.status.problem {
		h.now = now
		h.statusChanged(true)
	}
}

// problem is what keeps the data from being up to date although the etcd
// answers. It is called with mu held.
func (h *handler) problem() string {
	for _, s := range h.streams {
		if !s.enabled {
			continue
		}
		if err := s.reader.LastError(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// writeStatus writes the row. It is called with mu held, after the transaction
// that it describes, whose counts are then known.
func (h *handler) writeStatus() {
	counts := h.options.Writer.Counts(h.cluster)
	ready := len(h.streams) > 0
	resources := make(map[wire.Resource]state.ResourceState, len(h.streams))
	for _, s := range h.streams {
		of := state.ResourceState{Enabled: s.enabled, Synced: s.enabled && s.reader.Synced(), Lists: s.reader.Lists()}
		switch s.resource {
		case wire.Identities:
			of.Entries = counts.Identities
		case wire.Nodes:
			of.Entries = counts.Nodes
		case wire.Endpoints:
			of.Entries = counts.Endpoints + counts.Conflicts
		case wire.Services:
			of.Entries = counts.Services
		case wire.ServiceExports:
			of.Entries = counts.ServiceExports
		}
		resources[s.resource] = of
		ready = ready && (of.Synced || !of.Enabled)
	}

	h.status.problem = h.problem()
	tx := h.options.Writer.Begin()
	h.update(tx, func(row *state.RemoteCluster) {
		row.Resources, row.Problem = resources, h.status.problem
		row.Ready = ready
		row.Refused = h.status.Counts()
		row.Conflicts = uint64(counts.Conflicts)
		row.HeldBack = h.held.len()
		row.Late = h.status.late
		if h.status.lastEvent.After(row.LastEvent) {
			row.LastEvent = h.status.lastEvent
		}
	})
	tx.Commit()
	h.status.dirty, h.status.written, h.status.contested = false, h.now, counts.Conflicts > 0

	if ready {
		h.settle()
	}
}

// update changes what the row says, of a remote cluster or of the datastore.
func (h *handler) update(tx *state.Txn, fn func(*state.RemoteCluster)) {
	if !h.own {
		tx.UpdateRemoteCluster(h.cluster, fn)
		return
	}
	tx.UpdateDatastore(func(row *state.Datastore) { fn(&row.RemoteCluster) })
}

// settle tells the start that the cluster was taken in. Endpoints that are held
// back are not in the tables, and whoever prunes by those would cut off pods that
// run: so it waits for them, but no longer than the first of them may wait. It is
// called with mu held, with all resources synced.
func (h *handler) settle() {
	if h.settled {
		return
	}
	if h.settleBy.IsZero() {
		h.settleBy = h.now.Add(h.options.HoldTimeout)
	}
	if h.held.len() > 0 && h.now.Before(h.settleBy) {
		return
	}
	h.settled = true
	if h.options.Startup != nil {
		h.options.Startup.settle(h.cluster)
	}
	if h.options.settled != nil {
		h.options.settled()
	}
}

// refuse counts and logs a value that is not taken in.
func (h *handler) refuse(resource wire.Resource, key string, err error) *wire.Refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status.Refuse(h.log, resource, key, err)
}

// logProblems logs what a transaction has noted. It is called with mu held.
func (h *handler) logProblems() {
	s := &h.status
	if s.conflict.IsValid() {
		if suppressed, ok := s.Logs(); ok {
			h.log.Warn("Remote cluster claims an address that another cluster holds",
				"address", s.conflict, "suppressed", suppressed)
		}
		s.conflict = netip.Prefix{}
	}
	if s.late > s.lateLogged {
		if suppressed, ok := s.Logs(); ok {
			h.log.Warn("Took endpoints in without their identities, which are late",
				"endpoints", s.late-s.lateLogged, "suppressed", suppressed)
			s.lateLogged = s.late
		}
	}
}
