// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// TestReadOnlyMap looks into a map that another opens, late.
func TestReadOnlyMap(t *testing.T) {
	owner := tempBPF(t, 16)
	key, _ := NewKey(netip.MustParsePrefix("10.0.0.1/32"))
	entry := Entry{key, NewValue(4711, netip.MustParseAddr("172.18.0.2"), 0, 0)}
	require.Empty(t, owner.Update([]Entry{entry}))

	m := &readOnlyMap{log: hivetest.Logger(t), path: owner.Path(), capacity: 16}
	found, ok := m.Lookup(netip.MustParseAddr("10.0.0.1"))
	require.True(t, ok)
	require.Equal(t, entry, found)
	require.Equal(t, map[Key]Value{entry.Key: entry.Value}, content(t, m))
	require.ErrorIs(t, m.Update([]Entry{entry})[0], ErrForeignMap)
	require.ErrorIs(t, m.Delete([]Key{entry.Key})[0], ErrForeignMap)
	require.Len(t, content(t, m), 1)

	m.path += ".later"
	_, ok = m.Lookup(netip.MustParseAddr("10.0.0.1"))
	require.False(t, ok)
	for _, err := range m.All() {
		require.Error(t, err)
	}
}
