// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
)

// CacheConfigPrefix holds, in the etcd of an in-cluster cache and in no other,
// one CacheConfig at the name of its cluster. It ends in "/".
//
// Such an etcd has no cluster config, whatever the cluster's ID: nobody who looks
// for a cluster of a mesh takes it for one, and what it holds isn't meant to leave
// the cluster. An etcd without a CacheConfig, as a clustermesh-apiserver's, is no
// cache: its endpoints lack named ports, and what the cluster's filters hold back.
const CacheConfigPrefix = BasePrefix + "incluster-cache/"

// CacheConfigKey holds the CacheConfig of the cluster of that name.
func CacheConfigKey(cluster string) string { return CacheConfigPrefix + cluster }

// CacheConfig is what an in-cluster cache says about itself. It is there before
// what it describes: of each resource the canary, CanaryKey(resource, cluster,
// false), says when all of it is.
type CacheConfig struct {
	// ClusterID is the cluster's; 0 where the cluster is in no mesh.
	ClusterID uint32 `json:"id"`
	// Resources are those that the cache offers, in the order of CacheResources.
	// Any other has neither keys nor a canary.
	Resources []Resource `json:"resources"`
}

// CacheResources are what a cache can offer, in the order of Resources.
// ServiceExports aren't among them: no agent reads those of its own cluster.
var CacheResources = []Resource{Identities, Nodes, Endpoints, Services}

// ErrNoCacheConfig is returned where a cache's config is needed and there is none.
var ErrNoCacheConfig = errors.New("cache configuration not found")

// ParseCacheConfig decodes a CacheConfig. Fields and resources that it doesn't
// know are left out: they are a later version's. The error is ErrNoCacheConfig if
// raw is empty, and else encoding/json's.
func ParseCacheConfig(raw []byte) (CacheConfig, error) {
	var c CacheConfig
	if len(raw) == 0 {
		return c, ErrNoCacheConfig
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return CacheConfig{}, fmt.Errorf("decoding cache configuration: %w", err)
	}
	c.Resources = slices.DeleteFunc(slices.Clone(CacheResources), func(known Resource) bool {
		return !slices.Contains(c.Resources, known)
	})
	return c, nil
}

// MarshalCacheConfig gives the value of a CacheConfig.
func MarshalCacheConfig(c CacheConfig) ([]byte, error) {
	value, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding cache configuration: %w", err)
	}
	return value, nil
}

// ParseCacheResources reads a list of resources as a flag has it, and gives them
// in the order of CacheResources. The error names the word that is none of them.
func ParseCacheResources(words []string) ([]Resource, error) {
	var asked []Resource
	for _, word := range words {
		r := Resource(strings.TrimSpace(word))
		if !slices.Contains(CacheResources, r) {
			return nil, fmt.Errorf("%q is none of %s", word, joinResources(CacheResources))
		}
		asked = append(asked, r)
	}
	if len(asked) == 0 {
		return nil, fmt.Errorf("it names none of %s", joinResources(CacheResources))
	}
	if slices.Contains(asked, Endpoints) && !slices.Contains(asked, Identities) {
		// An agent holds each endpoint back until it knows the identity, which two
		// sources don't bring in one order.
		return nil, fmt.Errorf("%s need %s, from the same source", Endpoints, Identities)
	}
	return slices.DeleteFunc(slices.Clone(CacheResources), func(known Resource) bool {
		return !slices.Contains(asked, known)
	}), nil
}

func joinResources(resources []Resource) string {
	words := make([]string, len(resources))
	for i, r := range resources {
		words[i] = string(r)
	}
	return strings.Join(words, ", ")
}

// ValidateCacheCluster checks the name and ID of a cluster that has an in-cluster
// cache. Most are in no mesh: ID 0, with whatever name, "default" for one, is
// legal there. With another ID the cluster is in a mesh, and held to its rules.
func ValidateCacheCluster(c ClusterInfo) error {
	if c.ID != 0 {
		return ValidateLocalCluster(c)
	}
	if err := validateMeshSize(c); err != nil {
		return err
	}
	if err := cmtypes.ValidateClusterName(c.Name); err != nil {
		return fmt.Errorf("--%s=%q: %w", cmtypes.OptClusterName, c.Name, err)
	}
	return nil
}
