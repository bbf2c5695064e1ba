// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// snapshotFileName is the name of the snapshot in the state directory.
const snapshotFileName = "incluster-cache.snapshot"

// snapshotFile is a snapshot's place on disk.
type snapshotFile struct{ path string }

func newSnapshotFile(dir string) snapshotFile {
	return snapshotFile{path: filepath.Join(dir, snapshotFileName)}
}

// write puts a new snapshot in the place of the old one, and gives its size. Whatever
// happens in its course, the node's crash included, one of the two is there, whole.
func (f snapshotFile) write(header snapshotHeader, entries func(wire.Resource, func(ingest.Entry) error) error) (size int64, err error) {
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("writing snapshot: %w", err)
	}
	pending, err := renameio.NewPendingFile(f.path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return 0, fmt.Errorf("writing snapshot: %w", err)
	}
	defer func() { _ = pending.Cleanup() }() // nothing is left to clean, once it is in its place
	if err := writeSnapshot(pending, header, entries); err != nil {
		return 0, fmt.Errorf("writing snapshot %q: %w", f.path, err)
	}
	if size, err = pending.Seek(0, io.SeekCurrent); err != nil {
		return 0, fmt.Errorf("writing snapshot %q: %w", f.path, err)
	}
	if err := pending.CloseAtomicallyReplace(); err != nil {
		return 0, fmt.Errorf("writing snapshot %q: %w", f.path, err)
	}
	// The rename is on disk when its directory is.
	return size, syncDir(dir)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// clean removes what a writer that was killed has left.
func (f snapshotFile) clean() error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(f.path), "."+snapshotFileName+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// discard removes a snapshot that is of no use.
func (f snapshotFile) discard() error { return os.Remove(f.path) }

// loadedSnapshot is a snapshot that was checked to its end.
type loadedSnapshot struct {
	header snapshotHeader
	size   int64
	file   *os.File
}

// open checks the snapshot; the error is fs.ErrNotExist if there is none, and one of
// errSnapshotTorn and its like if it isn't one to use.
func (f snapshotFile) open(cluster wire.ClusterInfo) (*loadedSnapshot, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fs.ErrNotExist
	} else if err != nil {
		return nil, fmt.Errorf("reading snapshot: %w", err)
	}
	loaded := &loadedSnapshot{file: file}
	if loaded.header, err = readSnapshot(bufio.NewReader(file), cluster, nil); err == nil {
		var info fs.FileInfo
		if info, err = file.Stat(); err == nil {
			loaded.size = info.Size()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading snapshot %q: %w", f.path, err), file.Close())
	}
	return loaded, nil
}

// entries reads the snapshot once more and hands on its entries. It is the very file
// that was checked, even if another one has its name by now.
func (l *loadedSnapshot) entries(cluster wire.ClusterInfo, take func(wire.Resource, []ingest.Entry) error) error {
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("restoring snapshot: %w", err)
	}
	if _, err := readSnapshot(bufio.NewReader(l.file), cluster, take); err != nil {
		return fmt.Errorf("restoring snapshot: %w", err)
	}
	return nil
}

func (l *loadedSnapshot) close() error { return l.file.Close() }
