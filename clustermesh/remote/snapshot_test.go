// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawSnapshot(t *rapid.T, label string) snapshot {
	files := rapid.MapOf(rapid.StringMatching(`[a-d]{1,2}`), rapid.Custom(func(t *rapid.T) file {
		f := file{hash: sha256.Sum256([]byte{rapid.Byte().Draw(t, "content") % 3})}
		if rapid.Bool().Draw(t, "bad") {
			f.err = fmt.Errorf("error %d", rapid.IntRange(0, 1).Draw(t, "error"))
		}
		return f
	}))
	return snapshot(files.Draw(t, label))
}

// TestSnapshotChanges: the changes lead from the one snapshot to the other,
// none of them is superfluous, and removals come first.
func TestSnapshotChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawSnapshot(t, "from"), drawSnapshot(t, "to")
		got := maps.Clone(from)
		added, seen := false, map[string]bool{}
		for _, change := range from.changes(to) {
			require.False(t, seen[change.cluster], "%q changes twice", change.cluster)
			seen[change.cluster] = true
			old, existed := got[change.cluster]
			if change.removed {
				require.True(t, existed)
				require.False(t, added, "a removal after an addition")
				delete(got, change.cluster)
				continue
			}
			added = true
			require.False(t, existed && old.equal(change.file), "%q hasn't changed", change.cluster)
			got[change.cluster] = change.file
		}
		require.True(t, maps.EqualFunc(got, to, file.equal))
		require.Empty(t, to.changes(to))
	})
}

func TestClassify(t *testing.T) {
	const config = "endpoints:\n- http://127.0.0.1:2379\n"
	unreadable := &fs.PathError{Op: "open", Path: "red", Err: fs.ErrPermission}
	for _, test := range []struct {
		name    string
		content string
		err     error
		known   bool
		ok      bool
		wantErr error
	}{
		{name: "configuration", content: config, ok: true},
		{name: "known configuration", content: config, known: true, ok: true},
		{name: "certificate", content: "-----BEGIN CERTIFICATE-----"},
		{name: "empty"},
		{name: "truncated", known: true, ok: true, wantErr: errNoEndpoints},
		{name: "gone", err: fs.ErrNotExist},
		{name: "known and gone", err: &fs.PathError{Err: fs.ErrNotExist}, known: true},
		{name: "unreadable", err: unreadable, ok: true, wantErr: fs.ErrPermission},
		{name: "known and unreadable", err: unreadable, known: true, ok: true, wantErr: fs.ErrPermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, ok := classify([]byte(test.content), test.err, test.known)
			require.Equal(t, test.ok, ok)
			require.True(t, errors.Is(f.err, test.wantErr), "got %v", f.err)
		})
	}
}
