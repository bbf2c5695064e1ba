// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// FlagSnapshotInterval is SnapshotConfig's flag.
	FlagSnapshotInterval = "datastore-snapshot-interval"
	// snapshotRest is how many times as long as encoding the last snapshot has taken the
	// pause to the next one is at least: it takes a hundredth of a core at most. That the
	// disk takes its time is no reason to keep an older state.
	snapshotRest = 100
)

// SnapshotConfig says how an agent with --datastore=etcd keeps what it knows for the
// next start, in its --state-dir.
type SnapshotConfig struct {
	// Interval is the time between two snapshots, if anything happened in between; 0
	// is never, and each start begins with nothing.
	Interval time.Duration `mapstructure:"datastore-snapshot-interval"`
}

// DefaultSnapshotConfig is for a cache's etcd that keeps ten minutes of history: an
// agent that was killed right before its next snapshot has nine of them left to come
// back and resume.
var DefaultSnapshotConfig = SnapshotConfig{Interval: time.Minute}

// Flags registers the flags.
func (def SnapshotConfig) Flags(flags *pflag.FlagSet) {
	flags.Duration(FlagSnapshotInterval, def.Interval,
		"Time between two writes of this cluster's state to the state directory, with --datastore="+DatastoreEtcd+", for the next start; it is written at the stop as well (0 for never)")
}

func (def SnapshotConfig) validate() error {
	if def.Interval < 0 {
		return fmt.Errorf("--%s=%v: must not be negative", FlagSnapshotInterval, def.Interval)
	}
	return nil
}

// snapshots has an agent begin where an earlier one was, and keeps its own state for
// the next one.
type snapshots struct {
	log      *slog.Logger
	file     snapshotFile
	interval time.Duration
	cluster  wire.ClusterInfo
	local    *ingest.Local
	writer   *state.Writer
	program  string

	// What follows belongs to the job, and before that to restore.
	written []ingest.SavedPosition
}

// restore fills the tables with what the last process has left, if it is of use. It is
// called before anything is read. Whatever is wrong with the snapshot, the agent starts
// without it.
func (s *snapshots) restore() {
	began := time.Now()
	if err := s.file.clean(); err != nil {
		s.log.Warn("Removing unfinished snapshots failed", "error", err)
	}
	loaded, err := s.file.open(s.cluster)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.log.Info("No snapshot to start from", "path", s.file.path)
		return
	case errors.Is(err, errSnapshotTorn), errors.Is(err, errSnapshotVersion), errors.Is(err, errSnapshotForeign):
		s.log.Warn("Discarding the snapshot, this cluster's state will be listed", "path", s.file.path, "error", err)
		// One that is torn is of no use to anybody. Others are whole, and may be somebody's:
		// of an agent that was given this directory, or whose cluster's name this one was
		// given, by mistake. They stay until there is something to put in their place.
		if errors.Is(err, errSnapshotTorn) {
			if err := s.file.discard(); err != nil {
				s.log.Warn("Removing the snapshot failed", "error", err)
			}
		}
		s.publish(func(row *state.Snapshot) { row.Discarded = err.Error() })
		return
	case err != nil:
		s.log.Warn("The snapshot can't be read, this cluster's state will be listed", "error", err)
		s.publish(func(row *state.Snapshot) { row.Discarded = err.Error() })
		return
	}
	defer loaded.close()
	entries, err := s.apply(loaded)
	if err != nil {
		// What was restored by then is good; lists will bring the rest.
		s.log.Warn("Restoring the snapshot ended early", "error", err)
	}
	s.log.Info("Restored this cluster's state, as it was then, from a snapshot", "path", s.file.path,
		"created", loaded.header.Created, "entries", entries, "bytes", loaded.size, "took", time.Since(began))
	s.publish(func(row *state.Snapshot) {
		row.Created, row.Bytes, row.Restored = loaded.header.Created, loaded.size, entries
	})
}

// apply fills the tables. The positions come last: without them everything is listed.
func (s *snapshots) apply(loaded *loadedSnapshot) (entries int, err error) {
	err = loaded.entries(s.cluster, func(resource wire.Resource, batch []ingest.Entry) error {
		entries += len(batch)
		return s.local.Restore(resource, batch)
	})
	if err != nil {
		return entries, err
	}
	if loaded.header.Program == s.program {
		s.written = loaded.header.Resources // so it isn't written again as it is
	}
	for _, at := range loaded.header.Resources {
		if s.program == "" || loaded.header.Program != s.program {
			// See snapshotHeader, and programID. What is restored stays until a list has told the
			// difference.
			at = ingest.SavedPosition{Resource: at.Resource}
		}
		if err := s.local.Resume(at); err != nil {
			return entries, err
		}
	}
	return entries, nil
}

// run is the job that writes snapshots, the last one when ctx ends.
func (s *snapshots) run(ctx context.Context, health cell.Health) error {
	timer := time.NewTimer(s.interval)
	defer timer.Stop()
	health.OK(fmt.Sprintf("The first snapshot is in %v, if anything has changed by then", s.interval))
	ready := s.local.Ready()
	for {
		select {
		case <-ctx.Done():
			s.write(health)
			return nil
		case <-ready:
			ready = nil
			s.report()
			continue
		case <-timer.C:
		}
		encoding := s.write(health)
		timer.Reset(max(s.interval, snapshotRest*encoding))
	}
}

// write writes a snapshot, unless there is nothing new, or what there is lies between
// two states of the etcd. Then the old one is still good. It gives how long encoding it
// took.
func (s *snapshots) write(health cell.Health) (encoding time.Duration) {
	saved := s.local.Save()
	if saved == nil || slices.Equal(saved.Positions(), s.written) {
		return 0
	}
	began := time.Now()
	header := snapshotHeader{
		Cluster: s.cluster.Name, ClusterID: s.cluster.ID, Created: began.UTC(),
		Program: s.program, Resources: saved.Positions(),
	}
	size, err := s.file.write(header, func(resource wire.Resource, write func(ingest.Entry) error) error {
		began := time.Now()
		defer func() { encoding += time.Since(began) }()
		return saved.Entries(resource, write)
	})
	took := time.Since(began)
	if err != nil {
		health.Degraded("The next start will have to list, or begin with an older state", err)
		s.log.Warn("Writing a snapshot failed", "error", err)
		return encoding
	}
	s.written = saved.Positions()
	health.OK(fmt.Sprintf("Snapshot of %d bytes at %s, in %v", size, header.Created.Format(time.RFC3339), took))
	s.publish(func(row *state.Snapshot) { row.Created, row.Bytes = header.Created, size })
	return encoding
}

// report says what the snapshot was worth, once the cache was taken in.
func (s *snapshots) report() {
	starts := s.local.Starts()
	if len(starts) == 0 {
		return // there was none
	}
	started := map[wire.Resource]string{}
	for resource, start := range starts {
		switch {
		case start.Resumed:
			started[resource] = "resumed"
		case start.Relisted != "":
			started[resource] = "relisted-" + string(start.Relisted)
		}
	}
	s.log.Info("Went on from the snapshot", "resources", started)
	s.publish(func(row *state.Snapshot) { row.Started = started })
}

// publish brings the datastore's row up to date.
func (s *snapshots) publish(fn func(*state.Snapshot)) {
	tx := s.writer.Begin()
	tx.UpdateDatastore(func(row *state.Datastore) { fn(&row.Snapshot) })
	tx.Commit()
}
