// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"sync"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// rawConfigs are the cluster configs that belong in the local etcd: few and
// small, so that they are kept, unlike the data.
type rawConfigs struct {
	mu     sync.Mutex
	byName map[string][]byte
}

// setConfig writes a cluster's config; nil deletes it.
func (m *kvStoreMesh) setConfig(name string, raw []byte) {
	m.rawConfigs.mu.Lock()
	defer m.rawConfigs.mu.Unlock()
	if m.rawConfigs.byName == nil {
		m.rawConfigs.byName = make(map[string][]byte)
	}
	if raw == nil {
		delete(m.rawConfigs.byName, name)
	} else {
		m.rawConfigs.byName[name] = raw
	}
	// Under the lock, so that two calls can't overtake each other.
	m.configs.Apply([]etcd.Op{{Key: name, Value: raw, Delete: raw == nil}})
}

// deleteOrphanConfig deletes a config that an earlier process wrote, unless the
// cluster has been connected to in the meantime.
func (m *kvStoreMesh) deleteOrphanConfig(name string) (deleted bool) {
	m.rawConfigs.mu.Lock()
	defer m.rawConfigs.mu.Unlock()
	if _, ours := m.rawConfigs.byName[name]; ours {
		return false
	}
	m.configs.Apply([]etcd.Op{{Key: name, Delete: true}})
	return true
}

// refillConfigs writes again what the local etcd has lost.
func (m *kvStoreMesh) refillConfigs([]string) {
	m.rawConfigs.mu.Lock()
	defer m.rawConfigs.mu.Unlock()
	ops := make([]etcd.Op, 0, len(m.rawConfigs.byName))
	for name, raw := range m.rawConfigs.byName {
		ops = append(ops, etcd.Op{Key: name, Value: raw})
	}
	m.configs.Apply(ops)
	m.configs.Complete()
}
