// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"fmt"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// identityHost and identityRemoteNode are upstream's
	// identity.ReservedIdentityHost and ReservedIdentityRemoteNode.
	identityHost       uint32 = 1
	identityRemoteNode uint32 = 6

	// These are upstream's identity.ReservedIdentityWorld, …WorldIPv4 and …WorldIPv6, and
	// identity.IdentityScopeLocal, that of CIDRs, below its mask.
	identityWorld     uint32 = 2
	identityWorldIPv4 uint32 = 9
	identityWorldIPv6 uint32 = 10
	scopeMask         uint32 = 0xff000000
	scopeLocal        uint32 = 0x01000000
)

// isAlwaysMissed says whether the kernel takes an entry of this identity for none: it is
// what an address has that only a CIDR is known for. See maps.h of ipcache/bpf.
func isAlwaysMissed(identity uint32) bool {
	switch identity {
	case identityWorld, identityWorldIPv4, identityWorldIPv6:
		return true
	}
	return identity&scopeMask == scopeLocal
}

// check holds an answer to the question, and to what its cluster may say, as ingest does
// with what is pushed. Its error is a *wire.Refusal or wraps ErrRefused, and is about the
// whole answer: an endpoint whose identity isn't its cluster's is no better with another
// one that is.
func check(maxConnectedClusters uint32, q Question, a Answer) (Answer, error) {
	validator := wire.NewValidator(q.Cluster, q.ClusterID, maxConnectedClusters)
	if ep := a.Endpoint; ep != nil {
		if ep.Prefix != state.PrefixOf(q.Addr) {
			return Answer{}, fmt.Errorf("%w: asked for %s, cluster %q answers for %s", ErrRefused, q.Addr, q.Cluster, ep.Prefix)
		}
		// The host of a remote cluster isn't ours; see ingest.
		if ep.Identity == identityHost {
			node := *ep // the resolver may need its own
			node.Identity = identityRemoteNode
			ep, a.Endpoint = &node, &node
		}
		if err := validator.CheckEndpoint(wire.EndpointKey(ep.Prefix), ep); err != nil {
			return Answer{}, err
		}
	}
	for i := range a.Identities {
		id := &a.Identities[i]
		if id.ID != q.Identity && (a.Endpoint == nil || id.ID != a.Endpoint.Identity) {
			return Answer{}, fmt.Errorf("%w: nobody asked cluster %q for identity %d", ErrRefused, q.Cluster, id.ID)
		}
		if err := validator.CheckIdentity(id); err != nil {
			return Answer{}, err
		}
	}
	return a, nil
}

// mayCarry says whether packets of a cluster may name an identity in their tunnel header.
func mayCarry(identity, clusterID, maxConnectedClusters uint32) bool {
	return identity >= wire.MinIdentity && wire.IdentityRangeFor(clusterID, maxConnectedClusters).Contains(identity)
}
