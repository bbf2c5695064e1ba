// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keysPerLease bounds the keys on one lease. Revoking or expiring a lease is
// one transaction over its keys, which must stay small (etcd issue 15993);
// upstream uses the same number.
const keysPerLease = 1000

// leasePool spreads keys over leases, keeps the leases alive over the client's
// one keep-alive stream, and says which ones etcd has lost. Leases are known by
// a small number, so that a record of a key stays small; 0 is no lease.
//
// Its methods are called with the Writer's lock held, except grant, keepAlive
// and check, which talk to etcd.
type leasePool struct {
	log    *slog.Logger
	client *Client
	ttl    time.Duration

	leases []lease // index+1 is the number
	byID   map[clientv3.LeaseID]leaseNumber
	// open are numbers of leases that may have room, each once.
	open []leaseNumber
	// onLost is called, without the lock, when etcd no longer knows a lease.
	onLost func(leaseNumber)

	keepers sync.WaitGroup
}

type leaseNumber uint32

type lease struct {
	id   clientv3.LeaseID
	keys int
	lost bool
	open bool // it is in leasePool.open
	// stop ends its keep-alive, which would otherwise keep the keys of a lease
	// alive that came back with an etcd's older data.
	stop context.CancelFunc
}

func newLeasePool(log *slog.Logger, client *Client) *leasePool {
	return &leasePool{log: log, client: client, byID: make(map[clientv3.LeaseID]leaseNumber)}
}

// take gives a lease with room for one more key and counts the key. It returns
// 0 where there is none: then a lease must be granted.
func (p *leasePool) take() leaseNumber {
	for len(p.open) > 0 {
		n := p.open[len(p.open)-1]
		l := &p.leases[n-1]
		if !l.lost && l.keys < keysPerLease {
			l.keys++
			return n
		}
		l.open = false
		p.open = p.open[:len(p.open)-1]
	}
	return 0
}

// hold counts one more key on a lease that it is on already.
func (p *leasePool) hold(n leaseNumber) {
	if n != 0 {
		p.leases[n-1].keys++
	}
}

// drop counts one key less.
func (p *leasePool) drop(n leaseNumber) {
	if n == 0 {
		return
	}
	l := &p.leases[n-1]
	if l.keys--; l.keys < keysPerLease && !l.lost && !l.open {
		l.open = true
		p.open = append(p.open, n)
	}
}

// usable says whether keys may be put on the lease.
func (p *leasePool) usable(n leaseNumber) bool { return n != 0 && !p.leases[n-1].lost }

// id is the lease as etcd knows it; 0 is none.
func (p *leasePool) id(n leaseNumber) clientv3.LeaseID {
	if n == 0 {
		return clientv3.NoLease
	}
	return p.leases[n-1].id
}

// add makes a lease of etcd's known, granted by us or found on a key.
func (p *leasePool) add(id clientv3.LeaseID) (n leaseNumber, fresh bool) {
	if n, ok := p.byID[id]; ok && !p.leases[n-1].lost {
		return n, false
	}
	p.leases = append(p.leases, lease{id: id, open: true})
	n = leaseNumber(len(p.leases))
	p.byID[id] = n
	p.open = append(p.open, n)
	return n, true
}

// adopt makes a lease known whose keys aren't: until a Scope's Load has counted
// them, no more are put on it.
func (p *leasePool) adopt(id clientv3.LeaseID) (n leaseNumber, fresh bool) {
	if n, fresh = p.add(id); fresh {
		p.leases[n-1].open = false
		p.open = p.open[:len(p.open)-1]
	}
	return n, fresh
}

// lose marks a lease as gone and says whether it wasn't known to be.
func (p *leasePool) lose(n leaseNumber) bool {
	l := &p.leases[n-1]
	if l.lost {
		return false
	}
	l.lost = true
	if l.stop != nil {
		l.stop()
	}
	delete(p.byID, l.id)
	return true
}

// alive lists the leases that aren't lost.
func (p *leasePool) alive() []leaseNumber {
	var out []leaseNumber
	for i := range p.leases {
		if !p.leases[i].lost {
			out = append(out, leaseNumber(i+1))
		}
	}
	return out
}

// grant asks etcd for a lease.
func (p *leasePool) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := p.client.etcd.Grant(ctx, int64(max(p.ttl, time.Second).Seconds()))
	if err != nil {
		return 0, fmt.Errorf("granting lease: %w", err)
	}
	return resp.ID, nil
}

// keepAlive keeps a lease alive until ctx ends or etcd has lost it. The
// client's keep-alives share one stream; each lease costs a goroutine.
func (p *leasePool) keepAlive(ctx context.Context, n leaseNumber, id clientv3.LeaseID) {
	ctx, p.leases[n-1].stop = context.WithCancel(ctx)
	p.keepers.Go(func() {
		for ctx.Err() == nil {
			responses, err := p.client.etcd.KeepAlive(ctx, id)
			if err == nil {
				for range responses {
				}
			}
			// The stream ended: because of ctx, an expired lease, or an etcd that
			// was away for longer than the client likes to wait.
			switch gone, err := p.expired(ctx, id); {
			case gone:
				p.onLost(n)
				return
			case err != nil:
				if sleep(ctx, time.Second) != nil {
					return
				}
			}
		}
	})
}

// expired asks etcd whether it no longer knows a lease.
func (p *leasePool) expired(ctx context.Context, id clientv3.LeaseID) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := p.client.etcd.TimeToLive(ctx, id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return true, nil
	}
	return err == nil && resp.TTL <= 0, err
}

// AdoptLeases keeps alive the leases that keys below prefix are on, if mine says
// so of one of their keys: for what an earlier process wrote, until the Scope it
// belongs to is loaded, which may take as long as its source is away.
func (w *Writer) AdoptLeases(ctx context.Context, prefix string, mine func(key string) bool) error {
	err := listing{prefix: prefix, keysOnly: true}.pages(ctx, w.client, func(page *pb.RangeResponse) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, kv := range page.Kvs {
			if kv.Lease == 0 || !mine(string(kv.Key)) {
				continue
			}
			if n, fresh := w.leases.adopt(clientv3.LeaseID(kv.Lease)); fresh {
				w.leases.keepAlive(w.keeping, n, clientv3.LeaseID(kv.Lease))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopting the leases of %q: %w", prefix, err)
	}
	return nil
}
