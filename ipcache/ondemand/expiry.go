// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/state"
)

// expiryPause is the least time between two looks at what has expired: each reads when
// the kernel saw which address, some 30 ms for 65,536 of them (BenchmarkEachSeen of
// ipcache/bpf). It is also what an entry may outlive its time by.
const expiryPause = time.Second

const entriesExpire = "Entries are kept for as long as they are used"

// expire drops entries that were not used, and has the others asked for again, as they
// come due, until ctx ends.
func (e *engine) expire(ctx context.Context, health cell.Health) error {
	timer := e.clock.NewTimer(expiryPause)
	defer timer.Stop()
	var looked time.Time
	health.OK(entriesExpire)
	for failing := false; ctx.Err() == nil; {
		e.mu.Lock()
		at, ok := e.entries.next()
		e.mu.Unlock()
		if earliest := looked.Add(expiryPause); at.Before(earliest) {
			at = earliest
		}
		now := e.clock.Now()
		if ok && !now.Before(at) {
			looked = now
			err := e.expireDue()
			if err != nil {
				health.Degraded("It isn't known which entries are used: they are all kept", err)
			} else if failing {
				health.OK(entriesExpire)
			}
			failing = err != nil
			continue
		}
		if ok {
			timer.Reset(at.Sub(now))
		}
		select {
		case <-ctx.Done():
		case <-e.expiring:
		case <-timer.C():
		}
	}
	return nil
}

// expireDue is one look at all that is due. Its error is why it isn't known what was
// used; nothing is dropped then that might be in use.
func (e *engine) expireDue() error {
	e.writing.Lock()
	defer e.writing.Unlock()
	now := e.clock.Now()
	e.mu.Lock()
	_, oldest, ok := e.entries.addresses.GetOldest()
	entriesDue := ok && !now.Before(oldest.Until)
	_, carried, ok := e.entries.identities.GetOldest()
	writes := entriesDue || ok && !now.Before(carried.until)
	e.mu.Unlock()

	var err error
	clear(e.lastSeen)
	if entriesDue {
		err = e.kernel.EachSeen(func(addr netip.Addr, at time.Duration) {
			if at > 0 {
				e.lastSeen[addr] = at
			}
		})
		if err != nil {
			err = fmt.Errorf("reading when addresses were last used: %w", err)
		}
	}
	var tx *state.Txn
	if writes {
		tx = e.writer.Begin()
		defer tx.Abort()
	}
	e.mu.Lock()
	c := e.newChange(tx, 0)
	if writes {
		c.expireEntries(now, err == nil)
		c.expireIdentities(now)
	}
	c.expireNegatives(now)
	c.release()
	e.pump()
	e.mu.Unlock()
	if tx != nil {
		tx.Commit()
	}
	c.publish()
	return err
}

// expireEntries is called with mu held, as the others are. It stops where the queue is
// full: what isn't asked for now is next time.
func (c *change) expireEntries(now time.Time, known bool) {
	for {
		_, n, ok := c.entries.addresses.GetOldest()
		if !ok || now.Before(n.Until) {
			return
		}
		row, _, found := c.tables.Endpoints.Get(c.tx.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(n.Addr)))
		switch {
		case !found || row.Origin() != n.origin:
			// It has been pushed since, and may be gone again.
			c.metrics.again(outcomeTakenOver)
		case known && c.lastSeen[n.Addr] <= n.checked:
			c.metrics.again(outcomeUnused)
		case c.queue.full(own):
			return
		default:
			again := *n.Row
			again.Until = now.Add(c.config.TTL)
			c.entries.addresses.Add(n.Addr, &entry{Row: &again, origin: n.origin, checked: c.monotonic()})
			c.rows[again.key()] = &again
			c.enqueue(&lookup{
				question: Question{Cluster: n.origin.Cluster, ClusterID: n.origin.ClusterID, Addr: n.Addr},
				iface:    own, again: true,
			})
			continue
		}
		c.effect.add(c.entries.remove(n))
	}
}

func (c *change) expireIdentities(now time.Time) {
	for {
		_, n, ok := c.entries.identities.GetOldest()
		if !ok || now.Before(n.until) {
			return
		}
		c.effect.add(c.entries.drop(n))
	}
}

func (c *change) expireNegatives(now time.Time) {
	for {
		_, n, ok := c.entries.negatives.GetOldest()
		if !ok || now.Before(n.until) {
			return
		}
		c.effect.add(c.entries.undeny(n.addr))
	}
}

// withdraw has another ownership in force, and everything gone that isn't its cluster's
// any more.
func (e *engine) withdraw(next *ownership) {
	e.writing.Lock()
	defer e.writing.Unlock()
	tx := e.writer.Begin()
	defer tx.Abort()
	e.mu.Lock()
	e.cidrs = next
	c := e.newChange(tx, 0)
	ids := map[uint32]string{}
	for _, owned := range next.owned {
		ids[owned.clusterID] = owned.cluster
	}
	removed := 0
	for _, n := range e.entries.addresses.Values() {
		if !e.isOwner(Question{Cluster: n.origin.Cluster, ClusterID: n.origin.ClusterID, Addr: n.Addr}) {
			c.effect.add(e.entries.remove(n))
			removed++
		}
	}
	for _, n := range e.entries.identities.Values() {
		if ids[n.origin.ClusterID] != n.origin.Cluster {
			c.effect.add(e.entries.drop(n))
		}
	}
	for _, n := range e.entries.negatives.Values() {
		if owner, ok := next.owner(n.addr); !ok || !owner.sameCluster(n.owner) {
			c.effect.add(e.entries.undeny(n.addr))
		}
	}
	c.release()
	e.mu.Unlock()
	tx.Commit()
	c.publish()
	if removed > 0 {
		e.log.Info("Dropped resolved addresses whose cluster has them no longer", "count", removed)
	}
}

// forgetBut forgets how asking clusters went that aren't there any more.
func (e *engine) forgetBut(clusters map[string]struct{}) {
	for _, r := range e.chain.others {
		r.keep(clusters)
	}
	e.refusals.keep(clusters)
}
