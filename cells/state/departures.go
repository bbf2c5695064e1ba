// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// Departures notes whether endpoints' rows were removed, for whoever has asked somebody
// else about their addresses meanwhile: the answer may be from before. The table itself
// can't tell: the watch of a row that isn't there is one of its neighbours, too, of which
// one changes at any moment while a cluster is taken in.
//
// A row is noted as removed before the Txn that does it is committed, and by one that is
// aborted as well. An address is watched by one at a time. The methods are safe for
// concurrent use; a Txn pays a look for each row that it removes while any is watched.
type Departures struct {
	watched atomic.Int64
	mu      sync.Mutex
	of      map[netip.Prefix]bool
}

// Watch begins, or begins anew, to note whether rows are removed.
func (d *Departures) Watch(prefixes ...netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = make(map[netip.Prefix]bool)
	}
	for _, prefix := range prefixes {
		d.of[prefix] = false
	}
	d.watched.Store(int64(len(d.of)))
}

// Gone says whether the row was removed since Watch.
func (d *Departures) Gone(prefix netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[prefix]
}

// Unwatch ends it.
func (d *Departures) Unwatch(prefixes ...netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, prefix := range prefixes {
		delete(d.of, prefix)
	}
	d.watched.Store(int64(len(d.of)))
}

func (d *Departures) note(prefix netip.Prefix) {
	if d.watched.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.of[prefix]; ok {
		d.of[prefix] = true
	}
}
