// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// source is what is known about the cache as the source of this cluster's state,
// and the one place that tells it: to the row, to health and to the log. Ingest
// writes other fields of the same row. It is safe for concurrent use.
type source struct {
	log     *slog.Logger
	writer  *state.Writer
	cluster wire.ClusterInfo

	mu        sync.Mutex
	health    cell.Health // nil before the job runs
	isThere   bool
	ever      bool // it was there once
	since     time.Time
	backend   string
	failures  uint64
	lastError string
	// told is when which kind of error was logged, since it was last there.
	told map[string]time.Time
}

// tellInterval is how often the log says again that nothing is read.
const tellInterval = time.Minute

// newSource makes the row.
func newSource(log *slog.Logger, writer *state.Writer, cluster wire.ClusterInfo, now time.Time) *source {
	s := &source{log: log, writer: writer, cluster: cluster, since: now}
	s.publish("")
	return s
}

// reportTo sets where health goes.
func (s *source) reportTo(health cell.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = health
	health.OK("Connecting")
}

// connected says that a replica is read from now on.
func (s *source) connected(backend string, etcdID uint64, config wire.CacheConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isThere, s.ever, s.since = true, true, time.Now()
	s.backend, s.lastError = backend, ""
	id := fmt.Sprintf("%x", etcdID)
	s.log.Info("Reading this cluster's state from its cache", "backend", backend, "etcd-id", id, "resources", config.Resources)
	s.publish(id)
	s.health.OK(fmt.Sprintf("Reading from %s since %s", backend, s.since.UTC().Format(time.RFC3339)))
}

// leaving says that a replica isn't read any more, and another will be at once.
func (s *source) leaving(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Info("Leaving a replica of the cache", "backend", s.backend, "reason", reason)
	s.isThere, s.since, s.backend = false, time.Now(), ""
	s.publish("")
}

// lost says that a replica isn't read, or no longer, and why.
func (s *source) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isThere {
		s.isThere, s.since, s.backend = false, time.Now(), ""
		s.failures++
		s.told = nil
	}
	s.tell(err)
	s.lastError = err.Error()
	s.publish("")
	s.health.Degraded(s.absence(), err)
}

// tell logs why nothing is read: what is new at once, and what is known once in a
// while. That a connection was refused is the same whichever ports were tried.
func (s *source) tell(err error) {
	refused, kind := new(refusedError), "connection"
	if errors.As(err, &refused) {
		kind = refused.Error()
	}
	if last, ok := s.told[kind]; ok && time.Since(last) < tellInterval {
		return
	}
	if s.told == nil {
		s.told = map[string]time.Time{}
	}
	s.told[kind] = time.Now()
	if kind == "connection" {
		s.log.Warn("This cluster's state isn't being read, what is known stays in force", "error", err)
	} else {
		s.log.Error("Refusing a cache", "backend", refused.Backend, "error", refused.Err)
	}
}

// absence says since when nothing is read, and what that means.
func (s *source) absence() string {
	since := s.since.UTC().Format(time.RFC3339)
	if !s.ever {
		return fmt.Sprintf("No cache to read from since the start at %s", since)
	}
	return fmt.Sprintf("Away from the cache since %s, what was known then stays in force", since)
}

// publish brings the row up to date. The lock is held.
func (s *source) publish(etcdID string) {
	tx := s.writer.Begin()
	tx.UpdateDatastore(func(row *state.Datastore) {
		row.Kind, row.Name, row.ClusterID = DatastoreEtcd, s.cluster.Name, s.cluster.ID
		row.Backend, row.Connected, row.EtcdID = s.backend, s.isThere, etcdID
		row.Since, row.Failures, row.LastError = s.since, s.failures, s.lastError
	})
	tx.Commit()
}
