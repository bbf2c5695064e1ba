// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// status is what is known about one cluster's life, and the one place that
// tells it: to the cluster's row, to health, to the metrics and to the log. The
// cluster's Handler writes other fields of the same row.
// It is safe for concurrent use.
type status struct {
	cluster string
	log     *slog.Logger
	writer  *state.Writer
	clock   clock.PassiveClock
	metrics ClusterMetrics

	mu        sync.Mutex
	health    cell.Health // nil before the cluster's job runs
	connected bool
	etcdID    string
	// configErr is what is wrong with the configuration file; err is why the
	// cluster can't be followed. Either may be there without the other.
	configErr, err error
	failures       uint64
	lastFailure    time.Time
	revocations    uint64
	lastError      string // as it was published last
}

// start makes the row.
func (s *status) start() {
	now := s.clock.Now()
	s.update(func(row *state.RemoteCluster) { row.Since = now })
	s.metrics.ReadinessStatus.WithLabelValues(s.cluster).Set(0)
	s.metrics.TotalFailures.WithLabelValues(s.cluster).Set(0)
	s.metrics.TotalCacheRevocations.WithLabelValues(s.cluster).Set(0)
}

// reportTo sets where health goes.
func (s *status) reportTo(health cell.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = health
	s.reportHealth()
}

// config says what is wrong with the configuration file; nil is nothing.
func (s *status) config(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.configErr == nil {
		return
	}
	s.configErr = err
	s.publish(nil)
}

// answers says that an etcd answers, and which.
func (s *status) answers(etcdID uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fmt.Sprintf("%x", etcdID)
	if s.connected && s.etcdID == id {
		return
	}
	s.log.Info("Connection to remote cluster established", "etcd-id", id)
	s.etcdID = id
	s.setConnected(true)
}

// follows says that all is well: this is the cluster config in force.
func (s *status) follows(config wire.ClusterConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = nil
	s.metrics.ReadinessStatus.WithLabelValues(s.cluster).Set(1)
	s.publish(func(row *state.RemoteCluster) {
		row.ClusterID = config.ID
		row.Cached = config.Capabilities.Cached
		row.Region = config.Region
		row.Canaries = config.Capabilities.SyncedCanaries
		row.ServiceExports = config.Capabilities.ServiceExportsEnabled
	})
}

// problem says why the cluster isn't followed as it should be, while its etcd
// answers.
func (s *status) problem(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(err)
	s.publish(nil)
}

// lost says that the connection is gone, or can't be made, and why.
func (s *status) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = reasonOf(err); !s.connected && s.err != nil && sameReason(s.err, err) {
		err = s.err
	}
	s.fail(err)
	s.setConnected(false)
}

// revoked counts that what was known about the cluster was given up.
func (s *status) revoked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revocations++
	s.metrics.TotalCacheRevocations.WithLabelValues(s.cluster).Set(float64(s.revocations))
}

// removed takes the row, the health and the metrics away.
func (s *status) removed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx := s.writer.Begin()
	tx.DeleteRemoteCluster(s.cluster)
	tx.Commit()
	if s.health != nil {
		s.health.Close()
		s.health = nil
	}
	for _, vec := range []metric.Vec[metric.Gauge]{s.metrics.ReadinessStatus, s.metrics.TotalFailures,
		s.metrics.LastFailureTimestamp, s.metrics.TotalCacheRevocations} {
		if vec, ok := vec.(metric.DeletableVec[metric.Gauge]); ok {
			vec.DeleteLabelValues(s.cluster)
		}
	}
}

// fail counts a failure when there was none: an outage is one failure, however
// many attempts it takes to get over it.
func (s *status) fail(err error) {
	if s.err == nil {
		s.failures++
		s.lastFailure = s.clock.Now()
		s.metrics.TotalFailures.WithLabelValues(s.cluster).Set(float64(s.failures))
		s.metrics.LastFailureTimestamp.WithLabelValues(s.cluster).SetToCurrentTime()
	}
	s.metrics.ReadinessStatus.WithLabelValues(s.cluster).Set(0)
	s.err = err
}

func (s *status) setConnected(connected bool) {
	if s.connected == connected {
		s.publish(nil)
		return
	}
	s.connected = connected
	now := s.clock.Now()
	s.publish(func(row *state.RemoteCluster) { row.Since = now })
}

// publish brings row, log and health up to date; more sets further fields.
func (s *status) publish(more func(*state.RemoteCluster)) {
	lastError := s.lastErrorText()
	if lastError != s.lastError && lastError != "" {
		s.log.Warn("Remote cluster has a problem", "error", lastError)
	}
	s.lastError = lastError
	s.update(func(row *state.RemoteCluster) {
		row.Connected, row.EtcdID = s.connected, s.etcdID
		if !s.connected {
			row.EtcdID = ""
		}
		row.LastError, row.Failures, row.LastFailure = lastError, s.failures, s.lastFailure
		if more != nil {
			more(row)
		}
	})
	s.reportHealth()
}

func (s *status) lastErrorText() string {
	var texts []string
	for _, err := range []error{s.configErr, s.err} {
		if err != nil && (len(texts) == 0 || texts[0] != err.Error()) {
			texts = append(texts, err.Error())
		}
	}
	return strings.Join(texts, "; ")
}

func (s *status) reportHealth() {
	switch {
	case s.health == nil:
	case s.configErr != nil:
		s.health.Degraded("Configuration of remote cluster can't be used", s.configErr)
	case s.err != nil && s.connected:
		s.health.Degraded("Connected to remote cluster, not following it", s.err)
	case s.err != nil:
		s.health.Degraded("No connection to remote cluster", s.err)
	case s.connected:
		s.health.OK("Connected to etcd " + s.etcdID)
	default:
		s.health.OK("Connecting")
	}
}

func (s *status) update(fn func(*state.RemoteCluster)) {
	tx := s.writer.Begin()
	tx.UpdateRemoteCluster(s.cluster, fn)
	tx.Commit()
}
