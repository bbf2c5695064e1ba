// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/hive/cell"
	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long the directory must be quiet before it is looked at,
	// so that a file written in several steps, or many files written at once,
	// make one look; settleLimit bounds the wait where it never is.
	settleTime  = 20 * time.Millisecond
	settleLimit = 200 * time.Millisecond
	// directoryRetry is how often a directory that can't be read is tried again.
	directoryRetry = time.Second
)

// directory follows the files of the configuration directory. Whatever
// happens, it looks at all of it again: no state depends on which events the
// kernel or fsnotify coalesced or lost.
//
// There are two watches. The one on the directory sees files come, go and
// change, and the swap of "..data" by which kubelet updates a mounted Secret or
// ConfigMap. The ones on the files see changes of what a symbolic link outside
// of the directory points to. They are two fsnotify watchers because one drops
// the removal of a file whose directory it watches as well.
type directory struct {
	log   *slog.Logger
	path  string
	own   string // the local cluster, whose own configuration is ignored
	dirs  *fsnotify.Watcher
	files *fsnotify.Watcher

	known    snapshot
	watched  map[string][sha256.Size]byte // file watches, by cluster
	misnamed []string
}

// openDirectory fails if there is no such directory, or no watch to be had.
func openDirectory(log *slog.Logger, path, own string) (*directory, error) {
	// A file can be watched as well, and would never become a directory.
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("--clustermesh-config=%q: %w", path, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("--clustermesh-config=%q: it is not a directory", path)
	}
	d := &directory{log: log, path: path, own: own, known: snapshot{}, watched: map[string][sha256.Size]byte{}}
	var err error
	if d.dirs, err = fsnotify.NewWatcher(); err != nil {
		return nil, fmt.Errorf("watching configuration directory %q: %w", path, err)
	}
	if d.files, err = fsnotify.NewWatcher(); err == nil {
		if err = d.dirs.Add(path); err != nil {
			err = errors.Join(err, d.files.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("watching configuration directory %q: %w", path, errors.Join(err, d.dirs.Close()))
	}
	return d, nil
}

func (d *directory) close() error {
	return errors.Join(d.dirs.Close(), d.files.Close())
}

// follow tells apply what there is, and then what changes, until ctx ends.
// apply is also called when there is no change, once for each look.
func (d *directory) follow(ctx context.Context, health cell.Health, apply func([]change)) {
	for {
		var retry <-chan time.Time
		if changes, err := d.look(); err != nil {
			// What is known stays in force.
			d.log.Warn("Reading configuration directory failed", "directory", d.path, "error", err)
			health.Degraded("Reading configuration directory failed", err)
			retry = time.After(directoryRetry)
		} else {
			d.report(health)
			apply(changes)
		}
		if !d.wait(ctx, retry) {
			return
		}
	}
}

func (d *directory) report(health cell.Health) {
	if len(d.misnamed) > 0 {
		health.Degraded("Configuration directory has files that don't name a cluster",
			fmt.Errorf("not a cluster's name: %s", strings.Join(d.misnamed, ", ")))
		return
	}
	health.OK(fmt.Sprintf("Following %d configurations", len(d.known)))
}

// wait waits for an event and then for quiet. It is false when ctx ended.
func (d *directory) wait(ctx context.Context, retry <-chan time.Time) bool {
	var quiet, limit <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-retry:
			return true
		case <-quiet:
			return true
		case <-limit:
			return true
		case <-d.dirs.Events:
		case <-d.files.Events:
		case err := <-d.dirs.Errors:
			d.log.Warn("Watching configuration directory reported an error", "directory", d.path, "error", err)
		case err := <-d.files.Errors:
			d.log.Warn("Watching configuration files reported an error", "directory", d.path, "error", err)
		}
		quiet = time.After(settleTime)
		if limit == nil {
			limit = time.After(settleLimit)
		}
	}
}

// look reads the directory and gives the changes since the last look.
func (d *directory) look() ([]change, error) {
	// Watches are set before what they watch is read, so that no change falls
	// in between. The directory may have been replaced: setting a watch that
	// exists does nothing.
	if err := d.dirs.Add(d.path); err != nil {
		return nil, fmt.Errorf("watching configuration directory %q: %w", d.path, err)
	}
	found, misnamed, err := d.read()
	for err == nil && d.watch(found) {
		found, misnamed, err = d.read()
	}
	if err != nil {
		return nil, err
	}
	if !slices.Equal(misnamed, d.misnamed) && len(misnamed) > 0 {
		d.log.Error("Ignoring configurations that don't name a cluster", "files", misnamed)
	}
	changes := d.known.changes(found)
	d.known, d.misnamed = found, misnamed
	return changes, nil
}

// read gives the configurations, and the names of those files that look like
// one and whose name no cluster can have.
func (d *directory) read() (found snapshot, misnamed []string, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, nil, fmt.Errorf("listing configuration directory: %w", err)
	}
	found = snapshot{}
	for _, entry := range entries {
		name := entry.Name()
		path := filepath.Join(d.path, name)
		// Stat follows links: "..data" is a directory.
		if info, err := os.Stat(path); name == d.own || err == nil && !info.Mode().IsRegular() {
			continue
		}
		content, err := os.ReadFile(path)
		_, known := d.known[name]
		f, ok := classify(content, err, known)
		switch {
		case !ok:
		case cmtypes.ValidateClusterName(name) != nil:
			// An unreadable one may as well be a key.
			if f.err == nil {
				misnamed = append(misnamed, name)
			}
		default:
			if f.err != nil {
				f.err = fmt.Errorf("reading etcd configuration %q: %w", path, f.err)
			}
			found[name] = f
		}
	}
	return found, misnamed, nil
}

// watch sets the watches on the files of a snapshot and says whether there was
// a new one, so that the files must be read again. A file with another content
// may be another file, behind the same link.
func (d *directory) watch(found snapshot) (added bool) {
	set := d.files.WatchList()
	for cluster := range d.watched {
		if _, ok := found[cluster]; !ok {
			// It fails when the watch went with the file.
			_ = d.files.Remove(filepath.Join(d.path, cluster))
			delete(d.watched, cluster)
		}
	}
	for cluster, f := range found {
		path := filepath.Join(d.path, cluster)
		isSet := slices.Contains(set, path)
		if hash, ok := d.watched[cluster]; ok && isSet && hash == f.hash {
			continue
		}
		if isSet {
			_ = d.files.Remove(path)
		}
		switch err := d.files.Add(path); {
		case err == nil:
			d.watched[cluster] = f.hash
			added = true
		case !errors.Is(err, os.ErrNotExist):
			d.log.Warn("Watching configuration file failed", "file", path, "error", err)
		}
	}
	return added
}
