// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/cilium/pkg/k8s/resource"
	"github.com/cilium/statedb"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// localNodeIndex is the one index that upstream's Resources of endpoints have: those of
// its own node, by the address of that.
const localNodeIndex = "localNode"

var errNoIndex = errors.New("no such index")

// endpointResource is upstream's Resource of endpoints. Its events are those of
// upstream's own implementation on a list and a watch that are served; it keeps a copy
// of all endpoints, but only once somebody asks for events (ztunnel and the egress
// gateway do). Its store reads the table, and keeps nothing; by node it also gives what
// this agent has written.
type endpointResource[T runtime.Object] struct {
	resource.Resource[T]
	writer *state.Writer
	store  endpointStore[T]
}

// Store waits until the table has all of this cluster, as upstream's waits for a list.
func (r *endpointResource[T]) Store(ctx context.Context) (resource.Store[T], error) {
	if err := ingest.AwaitLocal(ctx, r.writer, r.store.table); err != nil {
		return nil, err
	}
	return &r.store, nil
}

// endpointStore is a resource.Store on the table. What it gives is made for the one who
// asks.
type endpointStore[T runtime.Object] struct {
	db    *statedb.DB
	table statedb.Table[*state.Endpoint]
	form  form[T]
	local *localPods
}

// each gives the pods of this cluster that have an endpoint, each once, until it returns
// false. It walks through the table.
func (s *endpointStore[T]) each(txn statedb.ReadTxn, give func(namespace, pod string)) {
	given := map[string]struct{}{}
	for row := range s.table.All(txn) {
		name := podOfRow(row)
		if _, ok := given[name]; ok || name == "" {
			continue
		}
		given[name] = struct{}{}
		give(row.Namespace(), row.Pod())
	}
}

func (s *endpointStore[T]) List() (objects []T) {
	txn := s.db.ReadTxn()
	s.each(txn, func(namespace, pod string) {
		if endpoint, ok := endpointOf(txn, s.table, namespace, pod); ok {
			objects = append(objects, s.form.of(endpoint))
		}
	})
	return objects
}

func (s *endpointStore[T]) IterKeys() resource.KeyIter {
	keys := &keys{}
	s.each(s.db.ReadTxn(), func(namespace, pod string) {
		keys.left = append(keys.left, resource.NewKey(s.form.ofName(namespace, pod)))
	})
	return keys
}

// keys is a resource.KeyIter.
type keys struct {
	left    []resource.Key
	current resource.Key
}

func (k *keys) Next() bool {
	if len(k.left) == 0 {
		return false
	}
	k.current, k.left = k.left[0], k.left[1:]
	return true
}

func (k *keys) Key() resource.Key { return k.current }

func (s *endpointStore[T]) Get(object T) (item T, exists bool, err error) {
	return s.GetByKey(resource.NewKey(object))
}

func (s *endpointStore[T]) GetByKey(key resource.Key) (item T, exists bool, err error) {
	namespace, pod, ok := s.form.podOf(key.Namespace, key.Name)
	if !ok {
		return item, false, nil
	}
	endpoint, ok := endpointOf(s.db.ReadTxn(), s.table, namespace, pod)
	if !ok {
		return item, false, nil
	}
	return s.form.of(endpoint), true, nil
}

// podsByIndex are the pods of the node with that address, those included that only this
// agent knows of.
func (s *endpointStore[T]) podsByIndex(index, value string) ([]pod, error) {
	if index != localNodeIndex {
		return nil, fmt.Errorf("%s by %q: %w", s.form.what, index, errNoIndex)
	}
	node, err := netip.ParseAddr(strings.TrimSpace(value))
	if err != nil {
		return nil, nil // no endpoint names that as its node
	}
	return s.local.on(node), nil
}

func (s *endpointStore[T]) IndexKeys(index, value string) ([]string, error) {
	pods, err := s.podsByIndex(index, value)
	keys := make([]string, 0, len(pods))
	for _, pod := range pods {
		keys = append(keys, resource.NewKey(s.form.ofName(pod.namespace, pod.name)).String())
	}
	return keys, err
}

func (s *endpointStore[T]) ByIndex(index, value string) ([]T, error) {
	pods, err := s.podsByIndex(index, value)
	txn := s.db.ReadTxn()
	objects := make([]T, 0, len(pods))
	for _, pod := range pods {
		endpoint, ok := endpointOf(txn, s.table, pod.namespace, pod.name)
		if !ok {
			endpoint, ok = s.local.written.get(pod)
		}
		// One that has just gone isn't given.
		if ok {
			objects = append(objects, s.form.of(endpoint))
		}
	}
	return objects, err
}

// CacheStore is a copy of what there is now. Upstream has it for a time of transition,
// and nobody there asks for that of endpoints.
func (s *endpointStore[T]) CacheStore() cache.Store {
	store := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc)
	for _, object := range s.List() {
		// It fails for what has no name.
		_ = store.Add(object)
	}
	return store
}
