// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// The roots of the schema. All end in "/", as a prefix that is watched must:
// without it the cluster "a" would also see the keys of the cluster "ab".
const (
	// BasePrefix holds everything below.
	BasePrefix = "cilium/"
	// StateRoot holds what a cluster says about itself.
	StateRoot = BasePrefix + "state/"
	// CacheRoot holds what KVStoreMesh copied from other clusters.
	CacheRoot = BasePrefix + "cache/"
	// ClusterConfigPrefix holds one cluster config for each cluster's name.
	ClusterConfigPrefix = BasePrefix + "cluster-config/"
	// SyncedRoot holds the canaries, by cluster.
	SyncedRoot = BasePrefix + "synced/"

	// OnDemandEndpointPrefix holds the endpoints that are looked up, never
	// pushed. It is below StateRoot because that is what upstream's etcd role
	// for remote clusters may read.
	OnDemandEndpointPrefix = StateRoot + "ondemand/ip/v1/default/"
	// OnDemandIdentityPrefix holds the identities that are looked up, by ID.
	OnDemandIdentityPrefix = StateRoot + "ondemand/identities/v1/id/"
)

const (
	// HeartbeatKey is rewritten every HeartbeatInterval. Its value is a time in
	// RFC 3339; readers only look at when it changes.
	HeartbeatKey = BasePrefix + ".heartbeat"
	// HeartbeatInterval is upstream's kvstore.HeartbeatWriteInterval. Upstream's
	// agents drop a connection on which two of them were missed.
	HeartbeatInterval = time.Minute
)

// schemaPath is the part of a resource's prefix that the state and the cached
// layout share, without slashes around it.
func schemaPath(r Resource) string {
	if r == Endpoints {
		return "ip/v1"
	}
	return string(r) + "/v1"
}

// StatePrefix is where a cluster writes its own entries of a resource. It ends
// in "/". Endpoints and identities have no cluster in it: their keys, addresses
// and numbers, are the cluster's own.
func StatePrefix(r Resource, cluster string) string {
	prefix := StateRoot + schemaPath(r)
	switch r {
	case Endpoints:
		return prefix + "/default/"
	case Identities:
		// The sibling "value/" maps labels to IDs, for the allocator of a cluster
		// in kvstore mode. It is never replicated.
		return prefix + "/id/"
	default:
		return prefix + "/" + cluster + "/"
	}
}

// CachePrefix is where KVStoreMesh writes a remote cluster's entries of a
// resource. It ends in "/".
func CachePrefix(r Resource, cluster string) string {
	prefix := CacheRoot + schemaPath(r) + "/" + cluster + "/"
	if r == Identities {
		return prefix + "id/"
	}
	return prefix
}

// Prefix is CachePrefix if the etcd has the cached layout, else StatePrefix.
func Prefix(r Resource, cluster string, cached bool) string {
	if cached {
		return CachePrefix(r, cluster)
	}
	return StatePrefix(r, cluster)
}

// CanaryKey is the key that exists once all of a cluster's entries of a
// resource are below Prefix(r, cluster, cached). It names the resource's path,
// not the whole prefix. Its value is a time in RFC 3339, which nobody reads.
func CanaryKey(r Resource, cluster string, cached bool) string {
	root := StateRoot
	if cached {
		root = CacheRoot
	}
	return SyncedPrefix(cluster) + root + schemaPath(r)
}

// SyncedPrefix holds all canaries of one cluster. It ends in "/".
func SyncedPrefix(cluster string) string { return SyncedRoot + cluster + "/" }

// ClusterConfigKey holds the cluster config of the cluster of that name.
func ClusterConfigKey(cluster string) string { return ClusterConfigPrefix + cluster }
