// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package wire holds the keys and values of Cilium's kvstore schema, version
// 1.19, as other programs read and write them. It is pure: no I/O, no clock, no
// global state. It is also the only room, beside kubernetes, remote and the
// programs, that imports github.com/cilium/cilium: an upgrade of the host that
// changes the schema is a change to this package.
//
//	types.go      the values, and the errors a refused value gives
//	keys.go       prefixes and keys, in the state and in the cached layout
//	endpoint.go, identity.go, node.go, service.go, config.go    the codecs
//	cacheconfig.go    what an in-cluster cache says about itself; our addition
//	endpoint_usual.go    the fast way through the values that arrive by the 100,000
//	endpoint_scope.go    an endpoint's scope, without the rest of it
//	node_usual.go        the same for nodes
//	address.go    between net.IP and netip, so that an address has one form
//	validate.go   what a remote cluster may claim
package wire

import (
	"errors"
	"fmt"
	"net/netip"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/clustermesh/store"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
)

// Resource names one kind of shared state; each has a prefix of its own.
type Resource string

const (
	// Endpoints map an address to its security identity.
	Endpoints Resource = "endpoints"
	// Identities map a numeric security identity to its labels.
	Identities Resource = "identities"
	// Nodes hold addresses, pod CIDRs and keys of a cluster's nodes.
	Nodes Resource = "nodes"
	// Services are the global services with their backends.
	Services Resource = "services"
	// ServiceExports are the exports of the Multi-Cluster Services API.
	ServiceExports Resource = "serviceexports"
	// EndpointSlices are the v1.20 schema's addition. They are carried from
	// cluster to cluster as they are, and not interpreted.
	EndpointSlices Resource = "endpointslices"
)

// Resources lists every kind that is replicated, in the order in which a
// consumer wants them: an endpoint is of no use before its identity and node.
var Resources = []Resource{Identities, Nodes, Endpoints, Services, ServiceExports, EndpointSlices}

// ClusterInfo is the local cluster's name, ID and the mesh's size, with
// upstream's flags (--cluster-name, --cluster-id, --max-connected-clusters).
type ClusterInfo = cmtypes.ClusterInfo

// DefaultClusterInfo is ClusterInfo as upstream defaults it: ID 0, name "default".
var DefaultClusterInfo = cmtypes.DefaultClusterInfo

// MCSAPIConfig says whether the Multi-Cluster Services API is on, with
// upstream's flags (--clustermesh-enable-mcs-api, …).
type MCSAPIConfig = mcsapitypes.MCSAPIConfig

// DefaultMCSAPIConfig is MCSAPIConfig as upstream defaults it: off.
var DefaultMCSAPIConfig = mcsapitypes.DefaultMCSAPIConfig

// Scope says how far an endpoint is to be synced.
type Scope uint8

const (
	// ScopeGlobal endpoints are synced to every cluster. It is the absent value.
	ScopeGlobal Scope = iota
	// ScopeRegional endpoints are synced within the source's region only.
	ScopeRegional
)

// String is the scope as people write it, on a pod for instance.
func (s Scope) String() string {
	if s == ScopeRegional {
		return scopeRegional
	}
	return "global"
}

// NamedPort is a container port that policy refers to by name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol string // "TCP", "UDP", "SCTP", "ANY"
}

// Endpoint is what the schema says about one address (upstream's
// identity.IPIdentityPair). The zero HostIP means that the value names none.
type Endpoint struct {
	// Prefix is the address. It is a single address (/32, /128) in every entry
	// that upstream and we write; a shorter prefix is legal in the schema.
	Prefix         netip.Prefix
	HostIP         netip.Addr
	Identity       uint32
	EncryptionKey  uint8
	Scope          Scope
	Metadata       string
	Namespace      string
	Pod            string
	ServiceAccount string
	NamedPorts     []NamedPort
}

// Identity is one security identity. Labels is the schema's own form, sorted
// and separated by semicolons ("k8s:app=web;k8s:io.kubernetes.pod.namespace=x;"):
// it is kept as text, since most identities of a large mesh are never looked into.
type Identity struct {
	ID     uint32
	Labels string
}

// NodeAddress is one address of a node; Type is "InternalIP", "ExternalIP",
// "CiliumInternalIP", … as upstream's addressing.AddressType.
type NodeAddress struct {
	Type string
	IP   netip.Addr
}

// Node is upstream's node/types.Node without what only its own process needs.
// The first IPv4 and IPv6 pod CIDR is the primary one (IPv4AllocCIDR), the rest
// are the secondary ones, in order.
type Node struct {
	Name          string
	Cluster       string
	ClusterID     uint32
	Addresses     []NodeAddress
	PodCIDRs4     []netip.Prefix
	PodCIDRs6     []netip.Prefix
	HealthIP4     netip.Addr
	HealthIP6     netip.Addr
	IngressIP4    netip.Addr
	IngressIP6    netip.Addr
	EncryptionKey uint8
	Labels        map[string]string
	Annotations   map[string]string
	// Source is upstream's Source field, which is part of the value on the wire.
	Source       string
	NodeIdentity uint32
	WireGuardKey string
	BootID       string
}

// Service is a global service with its backends, as upstream writes it.
type Service = store.ClusterService

// ServiceExport is one exported service of the Multi-Cluster Services API.
type ServiceExport = mcsapitypes.MCSAPIServiceSpec

// Capabilities is what a cluster config says about the etcd that holds it.
type Capabilities = cmtypes.CiliumClusterConfigCapabilities

// ClusterConfig is the value at cilium/cluster-config/<name>.
type ClusterConfig struct {
	ID           uint32
	Capabilities Capabilities
	// Region is the exporter's --cluster-region; our addition, absent when empty.
	Region string
}

// Reason classifies why a value was refused; it is a metric label, so the set is closed.
type Reason string

const (
	// ReasonMalformed means: the value can't be decoded.
	ReasonMalformed Reason = "malformed"
	// ReasonKeyMismatch means: key and value name different objects.
	ReasonKeyMismatch Reason = "key-mismatch"
	// ReasonIdentityRange means: the identity is outside the cluster's range.
	ReasonIdentityRange Reason = "identity-range"
	// ReasonForeignLabel means: the identity's policy-cluster label names another cluster, or none.
	ReasonForeignLabel Reason = "foreign-cluster-label"
	// ReasonForeignCluster means: a node, service or export names another cluster (name or ID).
	ReasonForeignCluster Reason = "foreign-cluster"
	// ReasonTooLarge means: the value is larger than the limit.
	ReasonTooLarge Reason = "too-large"
	// ReasonTooMany means: the cluster already has as many keys as it may.
	ReasonTooMany Reason = "too-many-keys"
	// ReasonBadKey means: the key isn't one of the schema.
	ReasonBadKey Reason = "bad-key"
	// ReasonBadAddress means: no pod or node can have the address, or prefix.
	ReasonBadAddress Reason = "bad-address"
)

// Reasons lists every Reason.
var Reasons = []Reason{ReasonMalformed, ReasonKeyMismatch, ReasonIdentityRange, ReasonForeignLabel,
	ReasonForeignCluster, ReasonTooLarge, ReasonTooMany, ReasonBadKey, ReasonBadAddress}

// Refusal is the error for one value that is not taken in. It names the object
// and never stands for more than that object.
type Refusal struct {
	Resource Resource
	Key      string
	Reason   Reason
	Err      error
}

// Error names the resource, the key, the reason and the detail. Key and detail
// quote what a remote cluster sent, and are cut to a length that suits a log.
func (r *Refusal) Error() string {
	return fmt.Sprintf("refusing %s %.256q: %s: %.512v", r.Resource, r.Key, r.Reason, r.Err)
}

// Unwrap gives the detail.
func (r *Refusal) Unwrap() error { return r.Err }

// ErrNoClusterConfig is returned where a cluster config is needed and there is none.
var ErrNoClusterConfig = errors.New("cluster configuration not found")
