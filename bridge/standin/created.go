// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"strconv"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
)

// createdInterval is the time after which an identity that this agent has created, and
// that the table still doesn't have, is asked for at the API server: it may have been
// deleted before the in-cluster cache had it, or the cache may be away.
const createdInterval = time.Minute

// created is an identity that this agent has created.
type created struct {
	object *ciliumv2.CiliumIdentity
	at     time.Time
}

// add tells the readers of an identity that this agent has created, unless they know it
// from the table.
func (i *identities) add(object *ciliumv2.CiliumIdentity) {
	number, err := strconv.ParseUint(object.Name, 10, 32)
	if err != nil {
		return // the table won't have it either
	}
	id := uint32(number)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.has(i.db.ReadTxn(), id) {
		return
	}
	i.created[id] = created{object: object, at: time.Now()}
	i.tell(news{id: id, object: object})
}

// tell is called with mu held.
func (i *identities) tell(n news) {
	for feed := range i.feeds {
		feed.news = append(feed.news, n)
		select {
		case feed.signal <- struct{}{}:
		default:
		}
	}
}

// late gives what was created before a moment, and that the table doesn't have. It
// forgets what the table has.
func (i *identities) late(before time.Time) (objects []*ciliumv2.CiliumIdentity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	txn := i.db.ReadTxn()
	for id, c := range i.created {
		switch {
		case i.has(txn, id):
			delete(i.created, id)
		case c.at.Before(before):
			objects = append(objects, c.object)
		}
	}
	return objects
}

// check asks for what is late, by get, and withdraws what is no longer there.
func (i *identities) check(ctx context.Context, before time.Time, get func(ctx context.Context, name string) error) {
	for _, object := range i.late(before) {
		if !k8serrors.IsNotFound(get(ctx, object.Name)) {
			continue // it is there, or nobody knows
		}
		i.log.Info("An identity that this agent has created was deleted before the in-cluster cache had it", "identity", object.Name)
		i.withdraw(object)
	}
}

// withdraw tells the readers that an identity has gone.
func (i *identities) withdraw(object *ciliumv2.CiliumIdentity) {
	number, err := strconv.ParseUint(object.Name, 10, 32)
	if err != nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if c, ok := i.created[uint32(number)]; ok && c.object == object {
		delete(i.created, uint32(number))
		i.tell(news{id: uint32(number), object: object, gone: true})
	}
}
