// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// quietPeriod is how long a directory has to be quiet before it is read
	// again: a writer's truncate, write and close, or an editor's rename dance,
	// take less, and an edit is to be in the tables within 20 ms.
	quietPeriod = 5 * time.Millisecond
	// maxWait bounds the wait for it: a directory that is never quiet is read
	// all the same.
	maxWait = 50 * time.Millisecond
)

// manifests reads a directory, without its subdirectories, and follows it.
type manifests struct {
	log   *slog.Logger
	dir   string
	kinds []*kind
	bad   *problems

	set     *manifestSet
	ignored map[schema.GroupKind]bool
	// watched are the directories that are watched for the sake of what is in
	// them: the directory, and those that its symbolic links point into.
	watched map[string]bool
}

func newManifests(log *slog.Logger, dir string, kinds []*kind, bad *problems) *manifests {
	if absolute, err := filepath.Abs(dir); err == nil {
		dir = absolute
	}
	m := &manifests{
		log: log, dir: dir, kinds: kinds, bad: bad,
		ignored: map[schema.GroupKind]bool{},
		watched: map[string]bool{},
	}
	m.set = newManifestSet(kinds, bad.add, m.ignore)
	return m
}

// check makes the start fail when there is no such directory.
func (m *manifests) check(cell.HookContext) error {
	info, err := os.Stat(m.dir)
	if err != nil {
		return fmt.Errorf("reading --k8s-manifests: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("reading --k8s-manifests: %q is not a directory", m.dir)
	}
	return nil
}

// ignore logs each kind that nothing reads once.
func (m *manifests) ignore(gvk schema.GroupVersionKind) {
	if !m.ignored[gvk.GroupKind()] {
		m.ignored[gvk.GroupKind()] = true
		m.log.Info("Ignoring manifests of a kind that isn't needed", "kind", gvk.Kind, "group", gvk.Group)
	}
}

// run reads the directory and follows it until ctx ends.
func (m *manifests) run(ctx context.Context, health cell.Health) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching manifests: %w", err)
	}
	defer watcher.Close()
	// The parent tells when the directory itself is replaced.
	if err := watcher.Add(filepath.Dir(m.dir)); err != nil {
		return fmt.Errorf("watching the parent of %q: %w", m.dir, err)
	}

	err = m.read(watcher, nil)
	err = errors.Join(err, m.set.load())
	m.tell(health, err)
	for {
		changed, ok := m.await(ctx, watcher)
		if !ok {
			return nil
		}
		m.tell(health, m.read(watcher, changed))
	}
}

func (m *manifests) tell(health cell.Health, err error) {
	if err != nil {
		health.Degraded("Reading manifests", err)
		m.log.Warn("Reading manifests failed, what was read before stays in force", "directory", m.dir, "error", err)
		return
	}
	health.OK(fmt.Sprintf("%d objects in %d files", len(m.set.holders), len(m.set.files)))
}

// await waits for changes and until they cease. The result names the files that
// changed, or is nil when everything may have; false when ctx ended.
func (m *manifests) await(ctx context.Context, watcher *fsnotify.Watcher) (changed map[string]bool, ok bool) {
	changed = map[string]bool{}
	var quiet, latest <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil, false
		case event, open := <-watcher.Events:
			if !open {
				return nil, false
			}
			if !m.note(event, watcher, &changed) {
				continue
			}
		case err, open := <-watcher.Errors:
			if !open {
				return nil, false
			}
			// Events were lost.
			m.log.Warn("Watching manifests failed, reading them all", "directory", m.dir, "error", err)
			changed = nil
		case <-quiet:
			return changed, true
		case <-latest:
			return changed, true
		}
		quiet = time.After(quietPeriod)
		if latest == nil {
			latest = time.After(maxWait)
		}
	}
}

// note adds what an event says to changed, and whether it concerns us.
func (m *manifests) note(event fsnotify.Event, watcher *fsnotify.Watcher, changed *map[string]bool) bool {
	name := filepath.Clean(event.Name)
	switch {
	case event.Op == fsnotify.Chmod:
		return false
	case name == m.dir:
		// Replaced, or gone: the watch may be on what it was before.
		if m.watched[m.dir] {
			_ = watcher.Remove(m.dir) // it fails when the kernel removed it already
			delete(m.watched, m.dir)
		}
		*changed = nil
	case m.watched[name]:
		// The target of a link, which is watched by what it is, not by its name.
		if event.Op&(fsnotify.Remove|fsnotify.Rename) != 0 {
			delete(m.watched, name)
		}
		*changed = nil
	case filepath.Dir(name) == m.dir && isManifest(name):
		if *changed != nil {
			(*changed)[filepath.Base(name)] = true
		}
	case m.watched[filepath.Dir(name)]:
		// A link that files hang on, or what links point to.
		*changed = nil
	default:
		return false
	}
	return true
}

// isManifest chooses by name; editors' backup and swap files have others.
func isManifest(path string) bool {
	name := filepath.Base(path)
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// read reads the files that changed, nil being all, and takes in what they say.
// When the directory can't be read nothing changes.
func (m *manifests) read(watcher *fsnotify.Watcher, changed map[string]bool) error {
	// Watched first: what happens after the reading is an event.
	if err := m.watch(watcher, m.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	var errs []error
	present := map[string]bool{}
	needed := map[string]bool{m.dir: true}
	for _, entry := range entries {
		name := entry.Name()
		if !isManifest(name) {
			continue
		}
		path := filepath.Join(m.dir, name)
		if entry.Type()&fs.ModeSymlink != 0 {
			errs = append(errs, m.watchTarget(watcher, path, needed))
		}
		// Opening a pipe, say, would wait for who writes to it.
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			continue
		}
		present[name] = true
		if changed != nil && !changed[name] {
			continue
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			delete(present, name)
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, m.set.update(name, content))
	}
	for name := range m.set.files {
		if !present[name] {
			errs = append(errs, m.set.remove(name))
		}
	}
	m.unwatch(watcher, needed)
	return errors.Join(errs...)
}

// watchTarget watches the directory that a link leads into, and notes it.
func (m *manifests) watchTarget(watcher *fsnotify.Watcher, path string, needed map[string]bool) error {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a dangling link is a file that isn't there
	}
	if err != nil {
		return fmt.Errorf("following a link: %w", err)
	}
	dir := filepath.Dir(target)
	needed[dir] = true
	return m.watch(watcher, dir)
}

func (m *manifests) watch(watcher *fsnotify.Watcher, dir string) error {
	if m.watched[dir] {
		return nil
	}
	if err := watcher.Add(dir); err != nil {
		return fmt.Errorf("watching %q: %w", dir, err)
	}
	m.watched[dir] = true
	return nil
}

// unwatch ends the watches on directories that no link leads into any more.
func (m *manifests) unwatch(watcher *fsnotify.Watcher, needed map[string]bool) {
	for dir := range m.watched {
		if needed[dir] {
			continue
		}
		delete(m.watched, dir)
		if dir != filepath.Dir(m.dir) {
			_ = watcher.Remove(dir) // it fails when the directory is gone, and its watch with it
		}
	}
}
