// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"strings"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// identityHost and identityRemoteNode are upstream's
	// identity.ReservedIdentityHost and ReservedIdentityRemoteNode.
	identityHost       uint32 = 1
	identityRemoteNode uint32 = 6
	// nodeSource is upstream's source.ClusterMesh.
	nodeSource = "clustermesh"
	// maxInterned bounds the strings that an endpoint decoder keeps, so that a
	// cluster with a namespace per build doesn't grow it for ever.
	maxInterned = 1024
)

// codec is how one resource gets from etcd into its table. decode is called
// outside of a transaction and its errors are *wire.Refusal; upsert and remove
// inside of one. remove gets any key, also one that decode refused.
type codec[T any] struct {
	decode func(key string, value []byte) (T, error)
	upsert func(tx *state.Txn, value T)
	remove func(tx *state.Txn, key string)
	// withdraw is remove of a key whose value was refused (see withdraws); nil where
	// that is the same.
	withdraw func(tx *state.Txn, key string)
	// leaves notes that a value which was restored has been removed at its source; nil
	// where no such value is kept.
	leaves func(value T)
	// restore is upsert of what was in the table before; nil where that is the same.
	restore func(tx *state.Txn, value T)
}

// withdraws says whether a refused value takes back what its key said before;
// the package's documentation has the reasons.
func withdraws(refusal *wire.Refusal) bool {
	switch refusal.Reason {
	case wire.ReasonIdentityRange, wire.ReasonForeignLabel, wire.ReasonForeignCluster:
		return true
	default:
		return refusal.Resource == wire.Identities
	}
}

func (h *handler) endpointCodec() codec[wire.Endpoint] {
	intern := newInterner()
	return codec[wire.Endpoint]{
		decode: func(key string, value []byte) (wire.Endpoint, error) {
			ep, err := wire.DecodeEndpoint(key, value, intern)
			if err != nil {
				return ep, err
			}
			// A remote cluster that names the host means its own. Taken at its
			// word, its addresses would have what policy grants this node.
			// Our own cluster's host is this one, or one that Kubernetes says so of.
			if !h.own && ep.Identity == identityHost {
				ep.Identity = identityRemoteNode
			}
			return ep, h.validator.CheckEndpoint(key, &ep)
		},
		upsert: h.offerEndpoint,
		// Whether its identity is there doesn't matter: it didn't then.
		restore: h.upsertEndpoint,
		remove: func(tx *state.Txn, key string) {
			prefix, err := wire.ParseEndpointKey(key)
			if err != nil {
				return // such a key never had a row
			}
			h.held.forget(prefix)
			tx.DeleteEndpoint(h.origin, state.Owner{}, prefix)
		},
	}
}

func (h *handler) identityCodec() codec[wire.Identity] {
	return codec[wire.Identity]{
		decode: func(key string, value []byte) (wire.Identity, error) {
			id, err := wire.DecodeIdentity(key, value)
			if err != nil {
				return id, err
			}
			return id, h.validator.CheckIdentity(&id)
		},
		upsert: func(tx *state.Txn, id wire.Identity) {
			tx.UpsertIdentity(h.origin, id)
			for _, ep := range h.held.identityKnown(id.ID, nil) {
				h.upsertEndpoint(tx, ep)
			}
		},
		// It stays while endpoints use it, which may be told later that they are gone.
		remove: h.identityRemover((*state.Txn).ReleaseIdentity),
		// What is said of it now can't be believed, and what was said before no longer
		// holds: endpoints that use it are better off with none.
		withdraw: h.identityRemover((*state.Txn).DeleteIdentity),
		leaves:   func(id wire.Identity) { h.leaving = append(h.leaving, id.ID) },
	}
}

func (h *handler) identityRemover(remove func(*state.Txn, *state.Origin, uint32)) func(*state.Txn, string) {
	return func(tx *state.Txn, key string) {
		id, err := wire.ParseIdentityKey(key)
		if err != nil {
			return
		}
		h.held.identityGone(id)
		remove(tx, h.origin, id)
	}
}

func (h *handler) nodeCodec() codec[wire.Node] {
	return codec[wire.Node]{
		decode: func(key string, value []byte) (wire.Node, error) {
			node, err := wire.DecodeNode(key, value)
			if err != nil {
				return node, err
			}
			if !h.own {
				// As upstream does: what counts is where we have it from, not where
				// the other cluster says that it had it from.
				node.Source = nodeSource
			}
			return node, h.validator.CheckNode(&node)
		},
		upsert: func(tx *state.Txn, node wire.Node) { tx.UpsertNode(h.origin, node) },
		remove: func(tx *state.Txn, key string) { tx.DeleteNode(h.origin, h.cluster, key) },
	}
}

func (h *handler) serviceCodec() codec[*wire.Service] {
	return codec[*wire.Service]{
		decode: func(key string, value []byte) (*wire.Service, error) {
			service, err := wire.DecodeService(key, value)
			if err != nil {
				return nil, err
			}
			return service, h.validator.CheckService(service)
		},
		upsert: func(tx *state.Txn, service *wire.Service) { tx.UpsertService(h.origin, service) },
		remove: func(tx *state.Txn, key string) {
			if namespace, name, ok := strings.Cut(key, "/"); ok {
				tx.DeleteService(h.origin, h.cluster, namespace, name)
			}
		},
	}
}

func (h *handler) serviceExportCodec() codec[*wire.ServiceExport] {
	return codec[*wire.ServiceExport]{
		decode: func(key string, value []byte) (*wire.ServiceExport, error) {
			export, err := wire.DecodeServiceExport(key, value)
			if err != nil {
				return nil, err
			}
			return export, h.validator.CheckServiceExport(export)
		},
		upsert: func(tx *state.Txn, export *wire.ServiceExport) { tx.UpsertServiceExport(h.origin, export) },
		remove: func(tx *state.Txn, key string) {
			if namespace, name, ok := strings.Cut(key, "/"); ok {
				tx.DeleteServiceExport(h.origin, h.cluster, namespace, name)
			}
		},
	}
}

// newInterner gives a function that turns equal bytes into one string, for
// what repeats over many endpoints. It doesn't allocate for what it has seen.
func newInterner() func([]byte) string {
	seen := map[string]string{}
	return func(b []byte) string {
		if s, ok := seen[string(b)]; ok {
			return s
		}
		if len(seen) >= maxInterned {
			clear(seen)
		}
		s := string(b)
		seen[s] = s
		return s
	}
}
