// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"slices"
)

// endpointsMarker is what makes a file of the directory an etcd configuration.
// The certificates that it refers to usually lie beside it.
var endpointsMarker = []byte("endpoints:")

var errNoEndpoints = errors.New("it has no endpoints any more")

// file is one cluster's configuration as one look at the directory found it.
type file struct {
	hash [sha256.Size]byte
	// err is why it can't be used, with the file's name.
	err error
}

func (f file) equal(other file) bool {
	if (f.err == nil) != (other.err == nil) || f.hash != other.hash {
		return false
	}
	return f.err == nil || f.err.Error() == other.err.Error()
}

// classify says what a file is by its content, or by the error of reading it.
// It is not ours (ok is false) if it doesn't look like an etcd configuration,
// unless it did before: then it is being written, or written wrongly, and the
// cluster stays. Only a file that is gone removes its cluster, because what
// follows, draining, can't be undone.
func classify(content []byte, err error, known bool) (f file, ok bool) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file{}, false
	case err != nil:
		return file{err: err}, true
	case bytes.Contains(content, endpointsMarker):
		return file{hash: sha256.Sum256(content)}, true
	case known:
		return file{hash: sha256.Sum256(content), err: errNoEndpoints}, true
	default:
		return file{}, false
	}
}

// snapshot is all the configurations of the directory, by cluster.
type snapshot map[string]file

// change is one difference between two snapshots.
type change struct {
	cluster string
	// removed: its file is gone, and file is meaningless.
	removed bool
	file    file
}

// changes lists what happened from s to next: first the removals, so that what
// they free (a cluster ID, when a cluster is renamed) is free for what is added.
func (s snapshot) changes(next snapshot) []change {
	var out []change
	for _, cluster := range slices.Sorted(maps.Keys(s)) {
		if _, ok := next[cluster]; !ok {
			out = append(out, change{cluster: cluster, removed: true})
		}
	}
	for _, cluster := range slices.Sorted(maps.Keys(next)) {
		if old, ok := s[cluster]; !ok || !old.equal(next[cluster]) {
			out = append(out, change{cluster: cluster, file: next[cluster]})
		}
	}
	return out
}
