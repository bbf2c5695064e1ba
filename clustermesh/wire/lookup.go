// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"strings"
)

// Lookup names one endpoint or identity of one cluster that is asked for on demand:
// not watched, but read when it is needed.
type Lookup struct {
	Cluster string
	// Resource is Endpoints or Identities.
	Resource Resource
	// Key is what the resource's keys have below their prefix: EndpointKey or
	// IdentityKey.
	Key string
}

// EndpointLookup asks for the endpoint at an address.
func EndpointLookup(cluster string, addr netip.Addr) Lookup {
	addr = addr.Unmap().WithZone("")
	return Lookup{cluster, Endpoints, EndpointKey(netip.PrefixFrom(addr, addr.BitLen()))}
}

// IdentityLookup asks for the labels of an identity.
func IdentityLookup(cluster string, id uint32) Lookup {
	return Lookup{cluster, Identities, IdentityKey(id)}
}

// The keys of a read-through, which answers for many clusters, have the name of the
// cluster where those of the cluster itself say "default", or nothing.
const (
	readThroughRoot       = StateRoot + "ondemand/"
	readThroughEndpoints  = readThroughRoot + "ip/v1/"
	readThroughIdentities = readThroughRoot + "identities/v1/"
)

// ReadThroughKey is the key by which a KVStoreMesh's read-through is asked. It stands
// for no key of its etcd.
func (l Lookup) ReadThroughKey() string {
	if l.Resource == Identities {
		return readThroughIdentities + l.Cluster + "/id/" + l.Key
	}
	return readThroughEndpoints + l.Cluster + "/" + l.Key
}

// ParseReadThroughKey is the inverse of ReadThroughKey. Its error is a *Refusal with
// ReasonBadKey, for a key that names no single address or identity. Whether there is
// such a cluster isn't looked at.
func ParseReadThroughKey(key string) (Lookup, error) {
	if rest, ok := strings.CutPrefix(key, readThroughEndpoints); ok {
		cluster, addr, ok := strings.Cut(rest, "/")
		if !ok || cluster == "" {
			return Lookup{}, refuse(Endpoints, key, ReasonBadKey, "it isn't %s<cluster>/<address>", readThroughEndpoints)
		}
		prefix, err := ParseEndpointKey(addr)
		if err != nil {
			return Lookup{}, err
		}
		if !prefix.IsSingleIP() {
			return Lookup{}, refuse(Endpoints, key, ReasonBadKey, "%s is not a single address", prefix)
		}
		return Lookup{cluster, Endpoints, addr}, nil
	}
	if rest, ok := strings.CutPrefix(key, readThroughIdentities); ok {
		cluster, id, ok := strings.Cut(rest, "/id/")
		if !ok || cluster == "" {
			return Lookup{}, refuse(Identities, key, ReasonBadKey, "it isn't %s<cluster>/id/<identity>", readThroughIdentities)
		}
		if _, err := ParseIdentityKey(id); err != nil {
			return Lookup{}, err
		}
		return Lookup{cluster, Identities, id}, nil
	}
	return Lookup{}, refuse(Endpoints, key, ReasonBadKey, "only keys below %s and %s are answered", readThroughEndpoints, readThroughIdentities)
}

// SourceKeys are the keys at which an etcd has what is looked up, in the order in
// which they count: what is pushed, and then, in the cluster's own etcd, what is on
// demand. An etcd with the cached layout has only the former.
func (l Lookup) SourceKeys(cached bool) []string {
	pushed := Prefix(l.Resource, l.Cluster, cached) + l.Key
	switch {
	case cached:
		return []string{pushed}
	case l.Resource == Identities:
		return []string{pushed, OnDemandIdentityPrefix + l.Key}
	}
	return []string{pushed, OnDemandEndpointPrefix + l.Key}
}
