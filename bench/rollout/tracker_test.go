// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package rollout

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTracker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "differences")
	require.NoError(t, Differences{"a": Hash([]byte("new")), "b": 0}.Write(path))
	var out bytes.Buffer
	tracker, err := NewTracker(path, 2, 2, &out)
	require.NoError(t, err)

	tracker.Synced(0, "nodes")
	tracker.Synced(0, "nodes")
	tracker.Synced(1, "nodes")
	tracker.Synced(1, "ip")
	require.Empty(t, out.String())
	tracker.Synced(0, "ip")
	require.Regexp(t, `^ready \d+\n$`, out.String())

	out.Reset()
	for client := range 2 {
		tracker.Synced(client, "nodes")
		tracker.Synced(client, "nodes")
	}
	for client := range 2 {
		tracker.See(client, "a", []byte("old"), false)
		tracker.See(client, "a", nil, true)
		tracker.See(client, "b", []byte("new"), false)
		tracker.See(client, "c", []byte("new"), false)
		require.Empty(t, out.String())
		tracker.See(client, "a", []byte("new"), false)
		tracker.See(client, "a", []byte("new"), false)
		require.Empty(t, out.String())
		tracker.See(client, "b", nil, true)
		require.Empty(t, out.String(), "it hasn't listed everything again")
		tracker.Synced(client, "ip")
		tracker.Synced(client, "ip")
	}
	require.Regexp(t, `^again \d+ \d+ \d+\n$`, out.String())

	_, err = NewTracker(path+"-none", 1, 1, &out)
	require.ErrorContains(t, err, "reading differences")
}
