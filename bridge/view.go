// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/pkg/kvstore"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// errReadOnly is the answer to every write, of which upstream makes none.
var errReadOnly = errors.New("the view of a remote cluster's tables can't be written to")

// view is the tables of one remote cluster as upstream's kvstore has them: the cluster's
// etcd, as far as ClusterMesh can tell. It is there from when our own connection has the
// cluster's config until that is another one; that the connection is lost in between
// makes no difference to what is known.
type view struct {
	readOnly

	log     *slog.Logger
	of      *clusters
	cluster string
	// config is the cluster config as we say it, of the connection that had raw.
	config []byte
	layout bool // the cached one
	// failed has the reason for another view.
	failed chan error

	ctx   context.Context
	close context.CancelFunc
	// mu guards closed: nothing begins once it is set.
	mu     sync.Mutex
	closed bool
	// streams are those who tell of prefixes.
	streams sync.WaitGroup
}

var _ kvstore.BackendOperations = (*view)(nil)

// Close ends what was begun, and waits for it.
func (v *view) Close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.close()
	v.streams.Wait()
}

// begin runs what ends with the view; false if that has ended.
func (v *view) begin(stream func()) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return false
	}
	v.streams.Go(stream)
	return true
}

// Status says what our own connection says.
func (v *view) Status() *models.Status {
	row, _, found := v.of.tables.RemoteClusters.Get(v.of.db.ReadTxn(), state.RemoteClusterByName(v.cluster))
	switch {
	case !found:
		return &models.Status{State: models.StatusStateFailure, Msg: "unknown to waggle"}
	case !row.Connected:
		return &models.Status{State: models.StatusStateFailure, Msg: "waggle: " + row.Trouble()}
	case row.Trouble() != "":
		return &models.Status{State: models.StatusStateWarning, Msg: "waggle: " + row.Trouble()}
	}
	return &models.Status{State: models.StatusStateOk, Msg: "waggle: connected to etcd " + row.EtcdID}
}

// StatusCheckErrors has what makes ClusterMesh take another view.
func (v *view) StatusCheckErrors() <-chan error { return v.failed }

// Get has the cluster config, and nothing else.
func (v *view) Get(_ context.Context, key string) ([]byte, error) {
	if key == wire.ClusterConfigKey(v.cluster) {
		return v.config, nil
	}
	return nil, fmt.Errorf("reading %q: the tables have no such key", key)
}

// ListAndWatch tells of a resource of the cluster, or of its canaries. Of a view that is
// closed the channel is, too.
func (v *view) ListAndWatch(ctx context.Context, prefix string) kvstore.EventChan {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.ctx, cancel)
	events := make(chan kvstore.KeyValueEvent)
	to := &stream{ctx: ctx, events: events}
	tell, err := v.teller(strings.TrimSuffix(prefix, "/") + "/")
	if err != nil {
		v.log.Error("Not telling of what there is no table for", "cluster", v.cluster, "error", err)
		tell = func(s *stream) { s.done() }
	}
	// As upstream's own client does it: no job, since who reads ends it.
	end := func() {
		cancel()
		stop()
		close(events)
	}
	begun := v.begin(func() {
		defer end()
		tell(to)
		<-ctx.Done()
	})
	if !begun {
		end()
	}
	return events
}

// teller finds what tells of a prefix until the stream ends.
func (v *view) teller(prefix string) (func(*stream), error) {
	if prefix == wire.SyncedPrefix(v.cluster) {
		return v.canaries, nil
	}
	for _, resource := range wire.Resources {
		if prefix != wire.Prefix(resource, v.cluster, v.layout) {
			continue
		}
		switch resource {
		case wire.Nodes:
			return told(v, v.of.nodes, prefix, func(n *state.Node) ([]byte, error) { return wire.MarshalNode(&n.Node) }), nil
		case wire.Identities:
			return told(v, v.of.identities, prefix, func(i *state.Identity) ([]byte, error) { return []byte(i.Labels), nil }), nil
		case wire.Services:
			return told(v, v.of.services, prefix, func(s *state.Service) ([]byte, error) { return wire.MarshalService(s.Service) }), nil
		case wire.Endpoints:
			return v.endpoints, nil
		}
	}
	return nil, fmt.Errorf("prefix %q", prefix)
}

// told tells of the cluster's rows of one table.
func told[T any](v *view, from *feed[T], prefix string, encode func(T) ([]byte, error)) func(*stream) {
	return func(s *stream) {
		rows, stop := from.follow(v.cluster)
		defer stop()
		known, listed := map[string]struct{}{}, false
		for {
			pending, complete := rows.take()
			for key, c := range pending {
				event := kvstore.KeyValueEvent{Key: prefix + key}
				_, was := known[key]
				switch {
				case c.deleted && !was:
					continue // it came and went
				case c.deleted:
					event.Typ = kvstore.EventTypeDelete
					delete(known, key)
				default:
					value, err := encode(c.row)
					if err != nil {
						v.log.Error("Not telling of an entry", "key", event.Key, "cluster", v.cluster, "error", err)
						continue
					}
					event.Value = value
					event.Typ = kvstore.EventTypeCreate
					if was {
						event.Typ = kvstore.EventTypeModify
					}
					known[key] = struct{}{}
				}
				if !s.send(event) {
					return
				}
			}
			if complete && !listed {
				listed = s.done()
			}
			select {
			case <-s.ctx.Done():
				return
			case <-rows.wake:
			}
		}
	}
}

// endpoints tells of none: they are brought to the ipcache beside this. What is said is
// when all are there that there were.
func (v *view) endpoints(s *stream) {
	if e := v.of.endpoints; e != nil {
		txn := v.of.db.ReadTxn()
		if e.waitFor(s.ctx, v.of.tables.Endpoints.Revision(txn)) != nil {
			return
		}
	}
	s.done()
}

// heldPatience is how long endpoints that wait for their identities keep the others from
// counting as complete: longer than any of them waits, by as much as it may take until
// those are in the tables.
const heldPatience = ingest.DefaultHoldTimeout + time.Second

// canaries says which resources are complete. ClusterMesh begins to read one when it is.
//
// Endpoints that wait for their identities when the last one comes are waited for, and none
// that begin to wait later: of a cluster that keeps naming identities which it doesn't have
// there always are some.
func (v *view) canaries(s *stream) {
	told := map[wire.Resource]bool{}
	var patience <-chan time.Time // since endpoints were synced, but for those that wait
	waited := false
	for first := true; ; first = false {
		row, _, changed, found := v.of.tables.RemoteClusters.GetWatch(v.of.db.ReadTxn(), state.RemoteClusterByName(v.cluster))
		for _, resource := range wire.Resources {
			if !found || told[resource] || !row.Resources[resource].Synced {
				continue
			}
			if resource == wire.Endpoints && row.HeldBack > 0 && !waited {
				if patience == nil {
					patience = time.After(heldPatience)
				}
				continue
			}
			told[resource] = true
			if !s.send(kvstore.KeyValueEvent{
				Typ: kvstore.EventTypeCreate, Key: wire.CanaryKey(resource, v.cluster, v.layout), Value: []byte("true"),
			}) {
				return
			}
		}
		if first && !s.done() {
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case <-changed:
		case <-patience:
			waited = true
		}
	}
}

// stream is where a prefix is told of.
type stream struct {
	ctx    context.Context
	events chan<- kvstore.KeyValueEvent
}

// send is false once nobody listens any more.
func (s *stream) send(event kvstore.KeyValueEvent) bool {
	select {
	case s.events <- event:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// done says that what there was has been told.
func (s *stream) done() bool { return s.send(kvstore.KeyValueEvent{Typ: kvstore.EventTypeListDone}) }
