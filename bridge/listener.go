// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/ipcache"
	ipcachemap "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/status"
)

// capacityInterval is how often it is looked whether all fits into the map.
const capacityInterval = 5 * time.Second

// listener hears of every change in the agent's ipcache, to put our entries back when a
// stronger source that had their addresses lets go, and to know how many there are. It is
// called with the ipcache locked, by whoever changes it.
type listener struct {
	// ours says whether entries of a source are ours.
	ours func(source.Source) bool

	mu sync.Mutex
	// entries is how many prefixes the map is to have.
	entries int
	// own is the prefix that we are changing now, which others may change meanwhile.
	own netip.Prefix
	// held are the prefixes of ours that a stronger source has, and freed those that may
	// be ours again.
	held, freed map[netip.Prefix]struct{}
	wake        chan struct{}
}

func newListener(ours func(source.Source) bool) *listener {
	return &listener{
		ours: ours,
		held: map[netip.Prefix]struct{}{}, freed: map[netip.Prefix]struct{}{},
		wake: make(chan struct{}, 1),
	}
}

// OnIPIdentityCacheChange implements upstream's listener.
func (l *listener) OnIPIdentityCacheChange(kind ipcache.CacheModification, in cmtypes.PrefixCluster, _, _ net.IP,
	old *ipcache.Identity, now ipcache.Identity, _ uint8, _ *ipcache.K8sMetadata, _ uint8) {
	prefix := in.AsPrefix()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case kind == ipcache.Delete:
		l.entries--
	case old == nil:
		l.entries++
		return // nobody had it
	}
	if prefix == l.own && l.ours(now.Source) && (old == nil || l.ours(old.Source)) {
		return // it is ours
	}
	l.freed[prefix] = struct{}{}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// begin and end enclose a change of ours, throughout which the ipcache isn't locked: who
// holds the address may let go of it right after it was refused to us. So what another
// source has a part in is heard of in between as well. At worst a row is written again that
// is in place, which is no change.
func (l *listener) begin(prefix netip.Prefix) {
	l.mu.Lock()
	l.own = prefix
	l.mu.Unlock()
}

func (l *listener) end() { l.begin(netip.Prefix{}) }

// contest notes whether a stronger source has the address.
func (l *listener) contest(prefix netip.Prefix, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held {
		l.held[prefix] = struct{}{}
	} else {
		delete(l.held, prefix)
	}
}

func (l *listener) contested() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held)
}

// take gives the prefixes that may be ours again.
func (l *listener) take() map[netip.Prefix]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.freed) == 0 {
		return nil // and not the map, which is written to
	}
	freed := l.freed
	l.freed = map[netip.Prefix]struct{}{}
	return freed
}

// size is how many entries the map is to have.
func (l *listener) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries
}

// overflow is how many entries of the agent's ipcache, whoever wrote them, don't fit into
// the datapath's map: upstream's has one size.
func (e *endpoints) overflow() int { return max(0, e.listener.size()-e.room) }

// status is the agent's map as a process's status tells of it. What upstream fails to write
// for another reason than its size isn't known here: its own metrics count that.
func (e *endpoints) status() status.IPCache {
	wanted := e.listener.size()
	return status.IPCache{
		Map: ipcachemap.Name + " of cilium-agent", Capacity: e.room, Wanted: wanted, Overflow: max(0, wanted-e.room),
	}
}

// reportCapacity is the job that says so in health.
func (e *endpoints) reportCapacity(ctx context.Context, health cell.Health) error {
	health.OK("Comparing the ipcache with the room in its map; how that is, is told by capacity")
	tick := time.NewTicker(e.capacityInterval)
	defer tick.Stop()
	full := false
	for {
		if over := e.overflow(); over > 0 {
			e.capacity.Degraded("The ipcache is larger than its map",
				fmt.Errorf("%d of %d entries don't fit into a map of %d", over, e.listener.size(), e.room))
			if !full {
				e.log.Error("The ipcache is larger than its map: endpoints are missing in the datapath", "missing", over, "capacity", e.room)
			}
			full = true
		} else {
			e.capacity.OK(fmt.Sprintf("%d of %d entries", e.listener.size(), e.room))
			full = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
