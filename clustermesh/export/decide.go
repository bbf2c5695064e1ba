// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// namespaces knows which namespaces are global. A namespace that doesn't exist
// isn't: its objects wait until it is known, and go when it goes.
type namespaces struct {
	// all: whatever there is is global, and what is in no namespace too.
	all    bool
	policy func(*state.Namespace) bool
	global map[string]struct{}
}

func newNamespaces(policy func(*state.Namespace) bool, all bool) *namespaces {
	return &namespaces{all: all, policy: policy, global: map[string]struct{}{}}
}

// update takes in a change of one namespace and says whether that made it
// global, or made it global no more.
func (n *namespaces) update(change statedb.Change[*state.Namespace]) (flipped bool) {
	name := change.Object.Name
	now := !change.Deleted && n.policy(change.Object)
	if now == n.isGlobal(name) {
		return false
	}
	if now {
		n.global[name] = struct{}{}
	} else {
		delete(n.global, name)
	}
	return true
}

func (n *namespaces) isGlobal(name string) bool {
	if n.all {
		return true
	}
	_, ok := n.global[name]
	return ok
}

// decision is what becomes of a row.
type decision struct {
	key   string
	fate  filter.Fate
	value []byte // unless it is kept
	// home: it is kept by its namespace, and nothing else.
	home bool
}

// decide decides about a row, which may be one that was deleted. The decision needs
// no memory of what was exported before, because a Scope drops a delete of what it
// doesn't have. ok is false for a row that has no key in this cluster's state.
//
// An object in no namespace (an identity without that label) isn't exported, unless
// its kind never is in one, or namespaces don't count.
//
// buf is only used during the call. What is allocated is the key, and the value
// exactly as long as it has to be: some 160 bytes for an endpoint
// (BenchmarkFirstRound). The key is set in any case, to report an error by.
func (c *codec[Row]) decide(row Row, deleted bool, n *namespaces, buf *[]byte) (d decision, ok bool, err error) {
	d.key, ok = c.key(row)
	if !ok || deleted || !c.eligible(row) {
		return d, ok, nil
	}
	if c.namespace != nil && !n.isGlobal(c.namespace(row)) {
		d.home = c.namespace(row) != ""
		return d, true, nil
	}
	var says filter.Workload
	if c.says != nil {
		says = c.says(row)
	}
	d.fate = filter.Pushed
	if c.fate != nil {
		d.fate = c.fate(row, says)
	}
	*buf, err = c.appendValue((*buf)[:0], row, says)
	if err == nil {
		// Readers refuse larger values, and an etcd with default limits does
		// from 1.5 MiB on: there it would block the Scope's Barrier for good.
		err = wire.CheckSize(c.resource, d.key, *buf)
	}
	if err == nil && d.fate == filter.OnDemand {
		err = wire.CheckLookupSize(wire.Lookup{Resource: c.resource, Key: d.key}, *buf)
	}
	if err != nil {
		return d, false, err
	}
	d.value = append(make([]byte, 0, len(*buf)), *buf...)
	return d, true, nil
}
