// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCacheConfig(t *testing.T) {
	_, err := ParseCacheConfig(nil)
	require.ErrorIs(t, err, ErrNoCacheConfig)
	_, err = ParseCacheConfig([]byte(`{"id": "x"}`))
	require.Error(t, err)

	want := CacheConfig{ClusterID: 0, Resources: []Resource{Identities, Nodes}}
	raw, err := MarshalCacheConfig(want)
	require.NoError(t, err)
	require.JSONEq(t, `{"id": 0, "resources": ["identities", "nodes"]}`, string(raw))
	got, err := ParseCacheConfig(raw)
	require.NoError(t, err)
	require.Equal(t, want, got)

	// What a later version might say.
	got, err = ParseCacheConfig([]byte(`{"id": 7, "resources": ["services", "policies", "nodes"], "more": {}}`))
	require.NoError(t, err)
	require.Equal(t, CacheConfig{ClusterID: 7, Resources: []Resource{Nodes, Services}}, got)
}

func TestParseCacheResources(t *testing.T) {
	for text, want := range map[string][]Resource{
		"services,nodes,identities,endpoints": CacheResources,
		"endpoints, identities":               {Identities, Endpoints},
		"nodes,nodes":                         {Nodes},
		"services":                            {Services},
	} {
		got, err := ParseCacheResources(strings.Split(text, ","))
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for text, want := range map[string]string{
		"identities,pods":       `"pods" is none of identities, nodes, endpoints, services`,
		"serviceexports":        `"serviceexports" is none`,
		"namespaces":            `"namespaces" is none`,
		"identities,":           `"" is none`,
		"nodes,endpoints":       "endpoints need identities",
		"identities;endpoints":  `"identities;endpoints" is none`,
		"Identities,endpoints,": `"Identities" is none`,
	} {
		_, err := ParseCacheResources(strings.Split(text, ","))
		require.ErrorContains(t, err, want, text)
	}
	_, err := ParseCacheResources(nil)
	require.ErrorContains(t, err, "it names none of")
	require.True(t, slices.IsSortedFunc(CacheResources, func(a, b Resource) int {
		return slices.Index(Resources, a) - slices.Index(Resources, b)
	}))
}

func TestValidateCacheCluster(t *testing.T) {
	cluster := func(name string, id, size uint32) ClusterInfo {
		return ClusterInfo{Name: name, ID: id, MaxConnectedClusters: size}
	}
	require.NoError(t, ValidateCacheCluster(DefaultClusterInfo))
	require.NoError(t, ValidateCacheCluster(cluster("east", 0, 255)))
	require.NoError(t, ValidateCacheCluster(cluster("east", 7, 511)))
	require.ErrorContains(t, ValidateCacheCluster(cluster("default", 7, 255)), "--cluster-name")
	require.ErrorContains(t, ValidateCacheCluster(cluster("east", 300, 255)), "--cluster-id")
	require.ErrorContains(t, ValidateCacheCluster(cluster("Not A Name", 0, 255)), "--cluster-name")
	require.ErrorContains(t, ValidateCacheCluster(cluster("default", 0, 100)), "--max-connected-clusters")
	require.Error(t, ValidateLocalCluster(DefaultClusterInfo), "the other programs are of a mesh")
}
