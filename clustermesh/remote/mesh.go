// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// settings are what all remote clusters have in common.
type settings struct {
	log       *slog.Logger
	directory string // of the configurations; empty is no mesh
	local     wire.ClusterInfo
	// cacheTTL is --clustermesh-cache-ttl; 0 is never.
	cacheTTL time.Duration
	// answerLimit and connectLimit are the constants, or shorter in tests.
	answerLimit, connectLimit time.Duration
	clients                   *clients
	factory                   Factory
	writer                    *state.Writer
	clock                     clock.WithDelayedExecution
	metrics                   ClusterMetrics
}

// Mesh is all remote clusters. Its methods are safe for concurrent use.
type Mesh struct {
	cfg    settings
	ids    *ids
	jobs   job.Group
	listed chan struct{}

	mu       sync.Mutex
	clusters map[string]*cluster
	// leaving are the clusters that were removed and whose Remove hasn't
	// returned yet; the file is set if the cluster came back in the meantime.
	leaving map[string]*file
	// left are those whose Remove has returned.
	left    []string
	hasLeft chan struct{}
}

func newMesh(cfg settings, jobs job.Group) *Mesh {
	return &Mesh{
		cfg:      cfg,
		ids:      newIDs(),
		jobs:     jobs,
		listed:   make(chan struct{}),
		clusters: map[string]*cluster{},
		leaving:  map[string]*file{},
		hasLeft:  make(chan struct{}, 1),
	}
}

// Enabled says whether there is a configuration directory.
func (m *Mesh) Enabled() bool { return m.cfg.directory != "" }

// Listed is closed once all clusters that the directory had at the start are
// known, by Clusters and as rows of the table "remote-clusters".
// It is never closed where the mesh isn't Enabled.
func (m *Mesh) Listed() <-chan struct{} { return m.listed }

// Clusters are the names of the configured clusters, sorted.
func (m *Mesh) Clusters() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.clusters))
}

// Configured says whether there is a cluster of that name, connected or not.
func (m *Mesh) Configured(cluster string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.clusters[cluster]
	return ok
}

// Connection is the one over which a cluster is followed now, for whoever looks up a
// key or two. It is false while there is none: the cluster isn't configured, its etcd
// doesn't answer, or its config isn't acceptable. The Client may be closed at any time
// after: a request then fails as if the etcd was away.
func (m *Mesh) Connection(cluster string) (Connection, bool) {
	m.mu.Lock()
	c, ok := m.clusters[cluster]
	m.mu.Unlock()
	if !ok {
		return Connection{}, false
	}
	conn := c.current.Load()
	if conn == nil {
		return Connection{}, false
	}
	return *conn, true
}

// follow is the job that follows the configuration directory.
func (m *Mesh) follow(ctx context.Context, health cell.Health, d *directory) {
	var once sync.Once
	d.follow(ctx, health, func(changes []change) {
		m.apply(changes)
		once.Do(func() { close(m.listed) })
	})
}

// apply takes in what changed in the directory.
func (m *Mesh) apply(changes []change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, change := range changes {
		if change.removed {
			m.remove(change.cluster)
		} else {
			m.configure(change.cluster, change.file)
		}
	}
	m.cfg.metrics.TotalRemoteClusters.Set(float64(len(m.clusters)))
}

func (m *Mesh) configure(name string, f file) {
	if _, ok := m.leaving[name]; ok {
		m.cfg.log.Info("Delaying remote cluster until its removal is done", "cluster", name)
		m.leaving[name] = &f
		return
	}
	if c, ok := m.clusters[name]; ok {
		c.configure(f)
		return
	}
	log := m.cfg.log.With("cluster", name)
	c := &cluster{
		name:    name,
		path:    filepath.Join(m.cfg.directory, name),
		log:     log,
		cfg:     &m.cfg,
		ids:     m.ids,
		handler: m.cfg.factory(name),
		status:  &status{cluster: name, log: log, writer: m.cfg.writer, clock: m.cfg.clock, metrics: m.cfg.metrics},
	}
	m.clusters[name] = c
	c.status.start()
	c.configure(f)
	log.Info("Adding remote cluster")
	m.jobs.Add(job.OneShot(state.RemoteClusterJob(name), func(ctx context.Context, health cell.Health) error {
		if c.live(ctx, health) {
			m.leave(name)
		}
		return nil
	}))
}

func (m *Mesh) remove(name string) {
	if c, ok := m.clusters[name]; ok {
		delete(m.clusters, name)
		m.leaving[name] = nil
		c.remove()
		return
	}
	// It came back and went again while it was being removed.
	m.leaving[name] = nil
}

// leave is called by a cluster's job when the removal is done.
func (m *Mesh) leave(name string) {
	m.mu.Lock()
	m.left = append(m.left, name)
	m.mu.Unlock()
	select {
	case m.hasLeft <- struct{}{}:
	default:
	}
}

// readmit is the job that adds the clusters again which came back while they
// were being removed.
func (m *Mesh) readmit(ctx context.Context, health cell.Health) {
	health.OK("No cluster was removed yet")
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.hasLeft:
		}
		m.mu.Lock()
		for _, name := range m.left {
			f := m.leaving[name]
			delete(m.leaving, name)
			if f != nil {
				m.configure(name, *f)
			}
		}
		m.left = nil
		waiting := slices.Sorted(maps.Keys(m.leaving))
		m.cfg.metrics.TotalRemoteClusters.Set(float64(len(m.clusters)))
		m.mu.Unlock()
		if len(waiting) > 0 {
			health.OK(fmt.Sprintf("Clusters whose removal has not ended: %s", strings.Join(waiting, ", ")))
		} else {
			health.OK("All clusters that were removed are gone, or are back")
		}
	}
}
