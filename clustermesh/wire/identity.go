// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/cilium/pkg/labels"
)

const (
	// LabelCluster is the label of an identity that names its cluster.
	LabelCluster = "io.cilium.k8s.policy.cluster"
	// LabelNamespace is the label of an identity that names its namespace.
	LabelNamespace = "io.kubernetes.pod.namespace"

	// MinIdentity is the first identity that is not reserved. What is below
	// (host, world, remote node, well-known ones, …) means the same in every
	// cluster (upstream's identity.MinimalNumericIdentity).
	MinIdentity uint32 = 256

	// identityBits is the width of an identity that a packet can carry, the
	// cluster's ID included (upstream's identity.NumericIdentityBitlength).
	identityBits = 24
)

// IdentityKey is the key of an identity below its prefix.
func IdentityKey(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// ParseIdentityKey is the inverse of IdentityKey. Its error is a *Refusal with
// ReasonBadKey, also for 0 and for numbers with leading zeros, of which the
// latter would give an identity a second key.
func ParseIdentityKey(key string) (uint32, error) {
	id, err := strconv.ParseUint(key, 10, 32)
	switch {
	case err != nil:
		return 0, refuse(Identities, key, ReasonBadKey, "%w", err)
	case key[0] == '0':
		return 0, refuse(Identities, key, ReasonBadKey, "not a positive number without leading zeros")
	}
	return uint32(id), nil
}

// DecodeIdentity decodes the value at a key, which is below the identities'
// prefix. What it returns doesn't refer to value. The labels are not looked
// into; only an empty value is refused, as by upstream. The error is a *Refusal:
// ReasonBadKey or ReasonMalformed. It allocates the copy of the labels and no more
// (BenchmarkDecodeIdentity).
func DecodeIdentity(key string, value []byte) (Identity, error) {
	id, err := ParseIdentityKey(key)
	if err != nil {
		return Identity{}, err
	}
	if len(value) == 0 {
		return Identity{}, refuse(Identities, key, ReasonMalformed, "no labels")
	}
	return Identity{ID: id, Labels: string(value)}, nil
}

// EncodeIdentityLabels turns a CiliumIdentity's security labels ("k8s:app": "x")
// into the schema's form: upstream's labels.Map2Labels(m, "").SortedList(). Where
// two sources have the same key, of which the schema keeps one, the source that
// sorts last wins; upstream leaves that to the order of its map.
func EncodeIdentityLabels(security map[string]string) string {
	all := make(labels.Labels, len(security))
	for _, key := range slices.Sorted(maps.Keys(security)) {
		label := labels.NewLabel(key, security[key], "")
		all[label.Key] = label
	}
	return string(all.SortedList())
}

// Label finds the value of a label whose source is Kubernetes in an identity's
// Labels. It doesn't allocate (BenchmarkLabel).
func Label(text, key string) (value string, ok bool) {
	for len(text) > 0 {
		var one string
		one, text, _ = strings.Cut(text, ";")
		source, k, v := splitLabel(one)
		if source == labels.LabelSourceK8s && k == key {
			return v, true
		}
	}
	return "", false
}

// splitLabel splits one label as upstream's labels.ParseLabel does, which can't
// be used on what a remote cluster sent: it logs an error for each CIDR label
// that is none.
func splitLabel(text string) (source, key, value string) {
	switch before, after, found := strings.Cut(text, ":"); {
	case strings.HasPrefix(text, "$"):
		source, text = labels.LabelSourceReserved, text[1:]
	case found:
		source, text = before, after
	case strings.HasPrefix(text, labels.LabelSourceReservedKeyPrefix):
		source, text = labels.LabelSourceReserved, text[len(labels.LabelSourceReservedKeyPrefix):]
	}
	reserved := source == labels.LabelSourceReserved
	if source == "" {
		source = labels.LabelSourceUnspec
	}
	key, value, _ = strings.Cut(text, "=")
	if key == "" && reserved {
		// "reserved:=host" is how upstream reads "reserved:host" written with an
		// empty key.
		key, value = value, ""
	}
	return source, key, value
}

// IdentityRange is an inclusive range of identities. It is empty if Max < Min.
type IdentityRange struct{ Min, Max uint32 }

// Contains says whether id is in the range.
func (r IdentityRange) Contains(id uint32) bool { return r.Min <= id && id <= r.Max }

// IdentityRangeFor is the range of identities that a cluster allocates from:
// the cluster's ID is in the upper bits, 8 of them in a mesh of 255 clusters and
// 9 in one of 511 (upstream's identity.GetMinimalAllocationIdentity and
// GetMaximumAllocationIdentity, whose answer depends on global state). The range
// of an ID above maxConnectedClusters is empty.
func IdentityRangeFor(clusterID, maxConnectedClusters uint32) IdentityRange {
	if clusterID > maxConnectedClusters {
		return IdentityRange{Min: 1}
	}
	clusterBits := bits.Len64(uint64(maxConnectedClusters)+1) - 1
	size := uint32(1) << max(identityBits-clusterBits, 0)
	return IdentityRange{Min: max(clusterID*size, MinIdentity), Max: (clusterID+1)*size - 1}
}

// ClusterIDOf is the cluster that an identity of a mesh of this size belongs to.
func ClusterIDOf(identity, maxConnectedClusters uint32) uint32 {
	clusterBits := bits.Len64(uint64(maxConnectedClusters)+1) - 1
	return identity >> max(identityBits-clusterBits, 0)
}
