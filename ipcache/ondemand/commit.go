// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// commit takes in what is answered by now: in one transaction, however many answers it
// is, and in none if there is nothing to write, as in a scan of absent addresses.
func (e *engine) commit() {
	e.writing.Lock()
	defer e.writing.Unlock()
	e.mu.Lock()
	batch := e.finished
	e.finished = nil
	writes := slices.ContainsFunc(batch, e.writes)
	e.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	var tx *state.Txn
	if writes {
		tx = e.writer.Begin()
		defer tx.Abort()
	}

	e.mu.Lock()
	c := e.newChange(tx, len(batch))
	results := make([]Outcome, len(batch))
	for i, a := range batch {
		results[i] = c.take(a)
	}
	c.release()
	e.mu.Unlock()
	if tx != nil {
		tx.Commit()
	}

	e.mu.Lock()
	now := e.monotonic()
	for i, a := range batch {
		e.writer.Departures().Unwatch(state.PrefixOf(a.question.Addr))
		delete(e.asking, a.question.Addr)
		if results[i] == repeat {
			e.enqueue(a.lookup)
		} else {
			if a.err == nil && a.signalled > 0 {
				e.metrics.duration(now - a.signalled)
			}
			if a.again {
				e.metrics.again(results[i])
			}
			e.resolved(a.lookup, results[i], a.err)
		}
		if a.then != nil {
			then := a.then
			a.then = nil
			e.enqueue(then)
		}
	}
	e.pump()
	e.mu.Unlock()
	c.publish()
	wake(e.expiring)
}

// repeat is the outcome of a lookup that is made again.
const repeat Outcome = "repeat"

// writes says whether an answer may change the tables, as one that they have given
// themselves doesn't. It is called with mu held.
func (e *engine) writes(a *answered) bool {
	known := a.from == string(OutcomeTable)
	return a.answer.Endpoint != nil && !known || len(a.answer.Identities) > 0 || e.entries.addresses.Contains(a.question.Addr)
}

// change is one change of the entries and of what follows from them: the tables, within
// tx, and then the kernel and the table "ondemand".
type change struct {
	*engine
	tx     *state.Txn
	effect effect
	// These have rows of the table "ondemand": by their keys, what was there and isn't.
	rows map[string]*Row
	// followed are addresses whose use the kernel is to note, and unfollowed no longer.
	followed, unfollowed []netip.Addr
}

// newChange makes one with room for so many addresses.
func (e *engine) newChange(tx *state.Txn, room int) *change {
	return &change{engine: e, tx: tx, rows: make(map[string]*Row, room), followed: make([]netip.Addr, 0, room)}
}

// take takes in one answer, in the order: nobody's address any more, the pushed entry is
// there, the answer is out of date, what there is, what there isn't. It is called with
// mu held; so are the others of a change, up to release.
func (c *change) take(a *answered) Outcome {
	q, ep := a.question, a.answer.Endpoint
	if !c.isOwner(q) {
		a.err = fmt.Errorf("%w: %s is no longer in a pod CIDR of cluster %q", ErrRefused, q.Addr, q.Cluster)
		return OutcomeRefused
	}
	c.touch(q)
	row := c.row(q.Addr)
	switch {
	case row != nil && row.Origin().Source < state.SourceOnDemand:
		if old, ok := c.entries.addresses.Peek(q.Addr); ok {
			c.effect.add(c.entries.remove(old)) // its row is gone already, by rank
		}
		c.carry(a)
		if c.known(q.Identity) {
			a.err = nil
		} else if a.err == nil {
			a.err = fmt.Errorf("%w: identity %d of cluster %q", ErrNotFound, q.Identity, q.Cluster)
		}
		if a.err != nil {
			return c.takeNothing(a)
		}
		c.effect.add(c.entries.undeny(q.Addr))
		if isAlwaysMissed(row.Identity()) {
			c.quiet(a, OutcomeTable)
		}
		return Outcome(cmp.Or(a.from, string(OutcomeTable)))
	case row == nil && ep != nil && c.writer.Departures().Gone(state.PrefixOf(q.Addr)), row == nil && a.from == string(OutcomeTable):
		// It was pushed and deleted while we asked: the answer may be from before, and so
		// is the entry that is asked for again.
		if old, ok := c.entries.addresses.Peek(q.Addr); ok {
			c.effect.add(c.entries.remove(old))
		}
		if a.repeated++; a.repeated <= maxRepeats {
			return repeat
		}
		if a.from == string(OutcomeTable) {
			a.err = fmt.Errorf("%w: the tables have %s and don't, by turns", ErrUnavailable, q.Addr)
			return OutcomeUnavailable
		}
	}
	if ep != nil && isAlwaysMissed(ep.Identity) {
		a.err = fmt.Errorf("%w: %s of cluster %q has identity %d, which is that of no entry", ErrNotFound, q.Addr, q.Cluster, ep.Identity)
		ep, a.answer.Endpoint = nil, nil
	}
	if ep == nil || !a.answer.hasIdentity(ep.Identity) && !c.known(ep.Identity) {
		c.carry(a)
		return c.takeNothing(a)
	}
	if q.Identity != ep.Identity {
		c.carry(a)
	}
	if a.from != string(OutcomeTable) {
		c.put(a)
	}
	a.err = nil
	c.effect.add(c.entries.undeny(q.Addr))
	if q.Identity != 0 && q.Identity != ep.Identity {
		// What the packet says isn't what the cluster says, or not yet, and asking with
		// each packet changes nothing about it.
		c.deny(a, OutcomeNegative)
	}
	return Outcome(a.from)
}

// row is what the tables have at an address; nil is nothing.
func (c *change) row(addr netip.Addr) *state.Endpoint {
	txn := c.db.ReadTxn()
	if c.tx != nil {
		txn = c.tx.ReadTxn()
	}
	row, _, _ := c.tables.Endpoints.Get(txn, state.EndpointByPrefix(state.PrefixOf(addr)))
	return row
}

// put makes the endpoint's row, or has it live for longer.
func (c *change) put(a *answered) {
	now := c.clock.Now()
	q, ep := a.question, a.answer.Endpoint
	n := &entry{
		Row: &Row{
			Kind: KindEndpoint, Addr: q.Addr, Identity: ep.Identity, Cluster: q.Cluster, ClusterID: q.ClusterID,
			Namespace: ep.Namespace, Pod: ep.Pod, From: a.from, Since: now, Until: now.Add(c.config.TTL),
		},
		origin: c.origin(q), checked: c.monotonic(),
	}
	if !c.entries.addresses.Contains(n.Addr) {
		c.followed = append(c.followed, n.Addr)
	}
	did := c.entries.put(n)
	for _, old := range did.removed {
		// Before the new row: two clusters' claims would be in conflict.
		c.tx.DeleteEndpoint(old.origin, state.Owner{}, state.PrefixOf(old.Addr))
	}
	c.effect.add(did)
	for _, id := range a.answer.Identities {
		if id.ID == n.Identity {
			c.tx.UpsertIdentity(n.origin, id)
		}
	}
	c.tx.UpsertEndpoint(n.origin, state.Owner{}, *ep)
	c.rows[n.key()] = n.Row
}

// carry makes the identity known that a packet has, whatever there is at its address.
func (c *change) carry(a *answered) {
	now := c.clock.Now()
	for _, id := range a.answer.Identities {
		if id.ID != a.question.Identity {
			continue
		}
		n := &carried{id: id.ID, origin: c.origin(a.question), from: a.from, since: now, until: now.Add(c.config.TTL)}
		c.tx.UpsertIdentity(n.origin, id)
		c.effect.add(c.entries.carry(n))
		c.rows[n.row().key()] = n.row()
	}
}

// touch keeps an identity for longer that packets still carry. Where the tables have all
// that a packet asks for, there is none in the answer.
func (c *change) touch(q Question) {
	old, ok := c.entries.identities.Peek(q.Identity)
	if !ok || old.origin != c.origin(q) {
		return
	}
	n := *old
	n.until = c.clock.Now().Add(c.config.TTL)
	c.effect.add(c.entries.carry(&n))
	c.rows[n.row().key()] = n.row()
}

// takeNothing is about an address of which nothing could be found, or nothing that may
// be used. What was known of it goes if that isn't so any more: see ingest for which of
// the refused answers say so.
func (c *change) takeNothing(a *answered) Outcome {
	if a.err == nil {
		// The labels of the identity have left the tables in this moment.
		a.err = ErrNotFound
	}
	result := outcome(a.err)
	var refusal *wire.Refusal
	withdrawn := errors.As(a.err, &refusal) && (refusal.Reason == wire.ReasonIdentityRange || refusal.Reason == wire.ReasonForeignLabel)
	if old, ok := c.entries.addresses.Peek(a.question.Addr); ok && (result == OutcomeNegative || withdrawn) {
		c.effect.add(c.entries.remove(old))
	}
	if result != OutcomeNegative && result != OutcomeRefused {
		return result
	}
	c.deny(a, result)
	if a.answer.Endpoint == nil && a.answer.hasIdentity(a.question.Identity) {
		return Outcome(a.from)
	}
	return result
}

// deny has the address not asked for again for a while, and lists it as absent.
func (c *change) deny(a *answered, result Outcome) {
	n := c.quiet(a, result)
	if !c.entries.addresses.Contains(n.addr) {
		now := c.clock.Now()
		c.rows[n.row(now).key()] = n.row(now)
	}
}

// quiet has the address not asked for again for a while, whatever there is.
func (c *change) quiet(a *answered, result Outcome) *negative {
	owner, _ := c.cidrs.owner(a.question.Addr)
	n := &negative{
		addr: a.question.Addr, owner: owner, identity: a.question.Identity,
		outcome: result, until: c.clock.Now().Add(c.config.NegativeTTL),
	}
	if result == OutcomeRefused || errors.Is(a.err, ErrUnknownIdentity) {
		n.reason = shortened(a.err) // else it is what the outcome says
	}
	c.effect.add(c.entries.deny(n))
	return n
}

func (c *change) known(id uint32) bool {
	return id < wire.MinIdentity || c.tx != nil && c.tx.HasIdentity(id) || c.tx == nil && c.chain.tables.hasIdentity(id)
}

func (c *change) origin(q Question) *state.Origin {
	return c.writer.Origin(q.Cluster, q.ClusterID, state.SourceOnDemand)
}

// release removes from the tables what the entries no longer have, as they are now: what
// was removed may have come back within the batch. Identities come last, and stay if an
// endpoint of another source uses them.
func (c *change) release() {
	for _, n := range c.effect.forgotten {
		if !c.entries.negatives.Contains(n.addr) && !c.entries.addresses.Contains(n.addr) {
			c.rows[n.row(n.until).key()] = nil
		}
	}
	// Of what was put and removed in one change nobody was told.
	c.followed = slices.DeleteFunc(c.followed, func(addr netip.Addr) bool { return !c.entries.addresses.Contains(addr) })
	for _, n := range c.effect.removed {
		now, ok := c.entries.addresses.Peek(n.Addr)
		if !ok {
			c.unfollowed = append(c.unfollowed, n.Addr)
			if !c.entries.negatives.Contains(n.Addr) {
				c.rows[n.key()] = nil
			}
		}
		if !ok || now.origin != n.origin {
			c.tx.DeleteEndpoint(n.origin, state.Owner{}, state.PrefixOf(n.Addr))
		}
	}
	for _, n := range c.effect.dropped {
		if !c.entries.identities.Contains(n.id) {
			c.rows[n.row().key()] = nil
		}
	}
	for _, n := range c.effect.freed {
		if c.entries.users[n.id] == 0 {
			c.tx.ReleaseIdentity(n.origin, n.id)
		}
	}
}

// publish tells the kernel, and writes the table "ondemand". It is called without mu:
// nobody's packets wait for either.
func (c *change) publish() {
	// There is room for so many, and no more than that.
	if len(c.unfollowed) > 0 {
		if err := c.kernel.Forget(c.unfollowed...); err != nil {
			c.kernelFailed(fmt.Errorf("no longer following the use of %d addresses: %w", len(c.unfollowed), err))
		}
	}
	if len(c.followed) > 0 {
		if err := c.kernel.Follow(c.followed...); err != nil {
			c.kernelFailed(fmt.Errorf("following the use of %d addresses: %w", len(c.followed), err))
		}
	}
	if len(c.rows) == 0 {
		return
	}
	wtxn := c.db.WriteTxn(c.table)
	defer wtxn.Commit()
	for key, row := range c.rows {
		if row != nil {
			_, _, err := c.table.Insert(wtxn, row)
			must(err)
		} else if old, _, found := c.table.Get(wtxn, rowByKey.Query(key)); found {
			_, _, err := c.table.Delete(wtxn, old)
			must(err)
		}
	}
}

// must turns statedb's errors, which are misuse of a transaction, into a panic.
func must(err error) {
	if err != nil {
		panic(fmt.Errorf("BUG: writing the table %q: %w", TableName, err))
	}
}
