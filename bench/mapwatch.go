// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/ipcache"
)

// mapWatch looks at an agent's map from outside. The kernel says how much memory
// the entries of the map take, so that a look costs the same however many there
// are; the entries themselves are compared once, at the end.
type mapWatch struct{ root, dir string }

const (
	// settled is how long a map that has all endpoints must stay as it is to be
	// complete: nodes give entries as well. It isn't part of what is measured.
	settled = time.Second
	// pinnedMap is the file name of the agent's map.
	pinnedMap = "waggle_ipcache"
)

// newMapWatch chooses the place of a map that no other program has, and tries
// whether there can be one.
func newMapWatch(log *slog.Logger) (*mapWatch, error) {
	w := &mapWatch{root: ipcache.DefaultConfig.BPFRoot, dir: fmt.Sprintf("waggle-bench-%d", os.Getpid())}
	m, err := ipcache.OpenBPF(log, ipcache.BPFConfig{Root: w.root, Dir: w.dir, Capacity: 1})
	if err != nil {
		return nil, fmt.Errorf("making a map for the agent: %w", err)
	}
	return w, errors.Join(m.Close(), w.remove())
}

// agent is the command line of our agent. It is asked for nothing that the one of
// a user doesn't have but a map of its own,
// and to keep nothing.
func (b *benchmark) agent(watch *mapWatch, configs string, more ...string) []string {
	return append([]string{b.config.Program, "agent",
		"--cluster-name=" + localName, "--cluster-id=" + strconv.Itoa(localID),
		fmt.Sprintf("--max-connected-clusters=%d", b.config.Mesh.MaxConnectedClusters()),
		"--clustermesh-config=" + configs, "--health-port=0", "--state-dir=",
		"--ipcache-backend=bpf", "--bpf-root=" + watch.root, "--bpf-map-dir=" + watch.dir,
	}, more...)
}

func (w *mapWatch) path() string { return filepath.Join(w.root, w.dir) }

// remove removes what the agent has left pinned.
func (w *mapWatch) remove() error {
	if err := os.RemoveAll(w.path()); err != nil {
		return fmt.Errorf("removing the agent's map: %w", err)
	}
	return nil
}

// open waits for the map.
func (w *mapWatch) open(ctx context.Context) (*ebpf.Map, error) {
	for {
		m, err := ebpf.LoadPinnedMap(filepath.Join(w.path(), pinnedMap), &ebpf.LoadPinOptions{ReadOnly: true})
		if err == nil {
			return m, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening the agent's map: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lookAgain):
		}
	}
}

// bytes is the kernel's memory that the entries of the map take, which is in no
// process's account.
func (w *mapWatch) bytes(ctx context.Context) (size int64, err error) {
	m, err := w.open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("looking at the agent's map: %w", err)
	}
	now, _ := info.Memlock()
	return int64(now), nil
}

// wait waits until the map has every endpoint with its identity and the address of
// every node, and has stopped to grow. What it gives is of the time when it last grew.
func (w *mapWatch) wait(ctx context.Context, p *process.Process, mesh Mesh) (last taken, err error) {
	return w.waitFor(ctx, p, newChanges(mesh).inMap)
}

// waitFor is wait for these entries, with their identities.
func (w *mapWatch) waitFor(ctx context.Context, p *process.Process, wanted func() (map[ipcache.Key]uint32, error)) (last taken, err error) {
	m, err := w.open(ctx)
	if err != nil {
		return last, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	var size uint64
	last.at = time.Now()
	for {
		info, err := m.Info()
		if err != nil {
			return last, fmt.Errorf("looking at the agent's map: %w", err)
		}
		now, _ := info.Memlock() // nothing while the map is empty
		switch at := time.Now(); {
		case now != size:
			size, last.at = now, at
			if last.cpu, err = p.CPU(); err != nil {
				return last, err
			}
		case size > 0 && at.Sub(last.at) >= settled:
			want, err := wanted()
			if err != nil {
				return last, err
			}
			var missing int
			if last.entries, missing, err = checkMap(m, want); err != nil {
				return last, err
			}
			if missing == 0 {
				return last, nil
			}
			if at.Sub(last.at) > 10*settled {
				return last, fmt.Errorf("%d endpoints or nodes aren't in the map, or have another identity", missing)
			}
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-time.After(lookAgain):
		}
	}
}

// checkMap counts the entries of the map, and of the wanted ones those that it
// lacks, or has with another identity. It empties want of those that it has.
func checkMap(m *ebpf.Map, want map[ipcache.Key]uint32) (entries, missing int, err error) {
	var (
		key   ipcache.Key
		value ipcache.Value
	)
	all := m.Iterate()
	for all.Next(&key, &value) {
		entries++
		if identity, ok := want[key]; ok && identity == value.Identity {
			delete(want, key)
		}
	}
	if err := all.Err(); err != nil {
		return 0, 0, fmt.Errorf("reading the agent's map: %w", err)
	}
	return entries, len(want), nil
}
