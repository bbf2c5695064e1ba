// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"net/netip"
	"strings"

	"github.com/cilium/cilium/pkg/labels"
)

const (
	// MaxValueBytes limits one value of a remote cluster: 1 MiB. etcd takes
	// requests of up to 1.5 MiB by default (embed.DefaultMaxRequestBytes), so a
	// larger value might be in a source whose operator raised that, and could
	// not be relied on to fit into our own etcd with its key and framing. The
	// largest values that are legitimate are services, at some 100 to 200 bytes
	// for each backend: 1 MiB is room for 5,000 of them with all they can have
	// (TestMaxValueBytes).
	MaxValueBytes = 1 << 20

	// MaxLookupBytes limits one value that is looked up: 16 KiB. What is kept of those
	// is bounded by number, and with MaxValueBytes each, 65,536 of them would be 64 GiB.
	// An endpoint has some 300 bytes, and an identity those of its labels, of which one
	// has 380 at the most by Kubernetes' limits for its key and value, and usually 50.
	MaxLookupBytes = 16 << 10

	// maxSegment is Kubernetes' limit for an object's name (RFC 1123 subdomain).
	maxSegment = 253
)

// Validator says what one cluster may claim. It is immutable, and safe for
// concurrent use. Every error of its methods is a *Refusal.
type Validator struct {
	Cluster              string
	ClusterID            uint32
	MaxConnectedClusters uint32
	identities           IdentityRange
	own                  bool
}

// NewValidator makes the Validator of the cluster with that name and ID. The
// third parameter is the local cluster's --max-connected-clusters: it decides
// which identities are the cluster's (IdentityRangeFor).
func NewValidator(cluster string, clusterID, maxConnectedClusters uint32) *Validator {
	return &Validator{
		Cluster:              cluster,
		ClusterID:            clusterID,
		MaxConnectedClusters: maxConnectedClusters,
		identities:           IdentityRangeFor(clusterID, maxConnectedClusters),
	}
}

// NewOwnValidator makes the Validator of this cluster itself, as its in-cluster
// cache tells of it. What Kubernetes holds is not doubted where it is read from a
// cache, as it isn't where it is read from the API server: any identity and any
// address passes. Only what names another cluster is refused, since it can't have
// come from here.
func NewOwnValidator(cluster string, clusterID uint32) *Validator {
	return &Validator{Cluster: cluster, ClusterID: clusterID, own: true,
		identities: IdentityRange{Min: 1, Max: math.MaxUint32}}
}

// CheckEndpoint refuses an endpoint whose address no pod can have,
// ReasonBadAddress, or whose identity is neither the cluster's nor a reserved
// one, ReasonIdentityRange. It doesn't allocate unless it refuses.
func (v *Validator) CheckEndpoint(key string, e *Endpoint) error {
	if v.own {
		return nil
	}
	if err := checkUnicast(e.Prefix); err != nil {
		return refuse(Endpoints, key, ReasonBadAddress, "%w", err)
	}
	if e.Identity >= MinIdentity && !v.identities.Contains(e.Identity) {
		return v.refuseIdentity(Endpoints, key, e.Identity)
	}
	return nil
}

// CheckIdentity refuses an identity that is not the cluster's by its number,
// ReasonIdentityRange, or by its labels, ReasonForeignLabel: they must contain
// the label LabelCluster of source Kubernetes, and no other of that key.
func (v *Validator) CheckIdentity(id *Identity) error {
	if v.own {
		return nil
	}
	if !v.identities.Contains(id.ID) {
		return v.refuseIdentity(Identities, IdentityKey(id.ID), id.ID)
	}
	found := false
	for text := id.Labels; len(text) > 0; {
		var one string
		one, text, _ = strings.Cut(text, ";")
		source, key, value := splitLabel(one)
		if key != LabelCluster {
			continue
		}
		if source != labels.LabelSourceK8s || value != v.Cluster {
			return refuse(Identities, IdentityKey(id.ID), ReasonForeignLabel,
				"label %q in an identity of cluster %q", one, v.Cluster)
		}
		found = true
	}
	if !found {
		return refuse(Identities, IdentityKey(id.ID), ReasonForeignLabel, "no label %s", LabelCluster)
	}
	return nil
}

func (v *Validator) refuseIdentity(r Resource, key string, id uint32) error {
	return refuse(r, key, ReasonIdentityRange, "identity %d is outside %d..%d of cluster %q, ID %d",
		id, v.identities.Min, v.identities.Max, v.Cluster, v.ClusterID)
}

// CheckNode refuses a node that names another cluster, ReasonForeignCluster, or
// that claims addresses or pod CIDRs which no node can have, ReasonBadAddress.
func (v *Validator) CheckNode(n *Node) error {
	if err := v.checkCluster(Nodes, n.Name, n.Cluster, n.ClusterID); err != nil {
		return err
	}
	if v.own {
		return nil
	}
	for _, address := range n.Addresses {
		if err := checkUnicastAddr(address.IP); err != nil {
			return refuse(Nodes, n.Name, ReasonBadAddress, "%s address: %w", address.Type, err)
		}
	}
	for _, addr := range []netip.Addr{n.HealthIP4, n.HealthIP6, n.IngressIP4, n.IngressIP6} {
		if !addr.IsValid() {
			continue
		}
		if err := checkUnicastAddr(addr); err != nil {
			return refuse(Nodes, n.Name, ReasonBadAddress, "health or ingress address: %w", err)
		}
	}
	for _, cidrs := range [][]netip.Prefix{n.PodCIDRs4, n.PodCIDRs6} {
		for _, cidr := range cidrs {
			if err := checkUnicast(cidr); err != nil {
				return refuse(Nodes, n.Name, ReasonBadAddress, "pod CIDR: %w", err)
			}
		}
	}
	return nil
}

// CheckService refuses a service that names another cluster: ReasonForeignCluster.
func (v *Validator) CheckService(s *Service) error {
	return v.checkCluster(Services, ServiceKey(s.Namespace, s.Name), s.Cluster, s.ClusterID)
}

// CheckServiceExport refuses an export that names another cluster:
// ReasonForeignCluster. Exports have no cluster ID.
func (v *Validator) CheckServiceExport(e *ServiceExport) error {
	return v.checkCluster(ServiceExports, ServiceKey(e.Namespace, e.Name), e.Cluster, v.ClusterID)
}

func (v *Validator) checkCluster(r Resource, key, name string, id uint32) error {
	if name != v.Cluster || id != v.ClusterID {
		return refuse(r, key, ReasonForeignCluster, "it names cluster %q, ID %d, in the state of %q, ID %d",
			name, id, v.Cluster, v.ClusterID)
	}
	return nil
}

// CheckKey refuses a key, below the resource's prefix, that the schema has no
// place for: ReasonBadKey, or ReasonIdentityRange for another cluster's identity.
// It is for KVStoreMesh, which passes on bytes without decoding them; it doesn't
// allocate unless it refuses (BenchmarkCheck).
func (v *Validator) CheckKey(r Resource, key string) error {
	switch r {
	case Endpoints:
		_, err := ParseEndpointKey(key)
		return err
	case Identities:
		id, err := ParseIdentityKey(key)
		if err == nil && !v.identities.Contains(id) {
			err = v.refuseIdentity(r, key, id)
		}
		return err
	case Nodes:
		return checkSegments(r, key, 1)
	case Services, ServiceExports:
		return checkSegments(r, key, 2)
	default:
		// Not interpreted, so there is no number of segments to expect.
		return checkSegments(r, key, strings.Count(key, "/")+1)
	}
}

// checkSegments refuses a key that isn't made of so many names, divided by
// slashes. Names are those of Kubernetes objects, and checked no closer than
// makes them harmless in a path and in a log.
func checkSegments(r Resource, key string, count int) error {
	if got := strings.Count(key, "/") + 1; got != count {
		return refuse(r, key, ReasonBadKey, "it has %d segments, not %d", got, count)
	}
	for rest, more := key, true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." || len(segment) > maxSegment {
			return refuse(r, key, ReasonBadKey, "segment %q is not a name", segment)
		}
		for i := range len(segment) {
			if segment[i] <= ' ' || segment[i] > '~' {
				return refuse(r, key, ReasonBadKey, "segment %q is not a name", segment)
			}
		}
	}
	return nil
}

// CheckSize refuses a value of more than MaxValueBytes: ReasonTooLarge.
func CheckSize(r Resource, key string, value []byte) error {
	if len(value) > MaxValueBytes {
		return refuse(r, key, ReasonTooLarge, "%d bytes are more than %d", len(value), MaxValueBytes)
	}
	return nil
}

// CheckLookupSize refuses a value that is looked up of more than MaxLookupBytes:
// ReasonTooLarge.
func CheckLookupSize(l Lookup, value []byte) error {
	if len(value) > MaxLookupBytes {
		return refuse(l.Resource, l.Key, ReasonTooLarge, "%d bytes are more than %d, for what is looked up", len(value), MaxLookupBytes)
	}
	return nil
}
