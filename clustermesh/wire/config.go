// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/tidwall/sjson"
)

// configJSON is a cluster config's value: upstream's fields first, then ours.
type configJSON struct {
	cmtypes.CiliumClusterConfig
	Region string `json:"region,omitempty"`
}

// ParseClusterConfig decodes a cluster config. Fields that we don't know are
// ignored here, and kept by CachedClusterConfig. The error is ErrNoClusterConfig
// if raw is empty, and else encoding/json's.
func ParseClusterConfig(raw []byte) (ClusterConfig, error) {
	if len(raw) == 0 {
		return ClusterConfig{}, ErrNoClusterConfig
	}
	var in configJSON
	if err := json.Unmarshal(raw, &in); err != nil {
		return ClusterConfig{}, fmt.Errorf("decoding cluster configuration: %w", err)
	}
	return ClusterConfig{ID: in.ID, Capabilities: in.Capabilities, Region: in.Region}, nil
}

// MarshalClusterConfig gives the value of a cluster config, byte for byte what
// upstream writes, and after that our region if there is one.
func MarshalClusterConfig(c ClusterConfig) ([]byte, error) {
	value, err := json.Marshal(configJSON{
		CiliumClusterConfig: cmtypes.CiliumClusterConfig{ID: c.ID, Capabilities: c.Capabilities},
		Region:              c.Region,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding cluster configuration: %w", err)
	}
	return value, nil
}

// CachedClusterConfig is a remote cluster's config as KVStoreMesh publishes it
// to the local agents: capabilities.cached and capabilities.syncedCanaries
// become true, and every other byte stays what it was, so that what later
// versions add to a config reaches the agents that know it. It fails if raw is
// not a cluster config, or one in which these two fields can't be set, as when
// it has two objects of that name. raw is not modified.
func CachedClusterConfig(raw []byte) ([]byte, error) {
	want, err := ParseClusterConfig(raw)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil, errors.New("decoding cluster configuration: it is null")
	}
	want.Capabilities.Cached, want.Capabilities.SyncedCanaries = true, true

	out := raw
	for _, field := range []string{"capabilities.cached", "capabilities.syncedCanaries"} {
		if out, err = sjson.SetBytes(out, field, true); err != nil {
			return nil, fmt.Errorf("setting %s of a cluster configuration: %w", field, err)
		}
	}
	// Agents that believed a config to be uncached would read our own cluster's
	// state as that of the remote one.
	switch got, err := ParseClusterConfig(out); {
	case err != nil:
		return nil, fmt.Errorf("marking a cluster configuration as cached: %w", err)
	case !sameConfig(got, want):
		return nil, errors.New("marking a cluster configuration as cached: its capabilities are ambiguous")
	}
	return out, nil
}

func sameConfig(a, b ClusterConfig) bool {
	enabled := func(c ClusterConfig) (known, on bool) {
		p := c.Capabilities.ServiceExportsEnabled
		return p != nil, p != nil && *p
	}
	aKnown, aOn := enabled(a)
	bKnown, bOn := enabled(b)
	a.Capabilities.ServiceExportsEnabled, b.Capabilities.ServiceExportsEnabled = nil, nil
	return a == b && aKnown == bKnown && aOn == bOn
}

// ValidateLocalCluster checks this cluster's own name, ID and the mesh's size, as
// upstream does for a cluster that is in a mesh: an ID of 0 is none.
func ValidateLocalCluster(c ClusterInfo) error {
	if err := validateMeshSize(c); err != nil {
		return err
	}
	if c.ID == 0 || c.ID > c.MaxConnectedClusters {
		return fmt.Errorf("--%s=%d: must be between 1 and %d", cmtypes.OptClusterID, c.ID, c.MaxConnectedClusters)
	}
	if err := cmtypes.ValidateClusterName(c.Name); err != nil {
		return fmt.Errorf("--%s=%q: %w", cmtypes.OptClusterName, c.Name, err)
	}
	if c.Name == DefaultClusterInfo.Name {
		return fmt.Errorf("--%s=%q: a cluster in a mesh needs a name of its own", cmtypes.OptClusterName, c.Name)
	}
	return nil
}

func validateMeshSize(c ClusterInfo) error {
	if c.MaxConnectedClusters != 255 && c.MaxConnectedClusters != 511 {
		return fmt.Errorf("--%s=%d: must be 255 or 511", cmtypes.OptMaxConnectedClusters, c.MaxConnectedClusters)
	}
	return nil
}

// ValidateClusterConfig says whether a mesh like the local one can contain a
// cluster with this config: its ID is one of the mesh's, and if ours is a mesh of
// more than 255 clusters, it splits identities as we do. This is upstream's
// ClusterInfo.ValidateRemoteConfig, whose answer depends on global state.
func ValidateClusterConfig(local ClusterInfo, c ClusterConfig) error {
	theirs := c.Capabilities.MaxConnectedClusters
	switch {
	case c.ID == cmtypes.ClusterIDUnset:
		return fmt.Errorf("cluster ID %d is reserved", c.ID)
	case c.ID > local.MaxConnectedClusters:
		return fmt.Errorf("cluster ID %d is above --max-connected-clusters=%d", c.ID, local.MaxConnectedClusters)
	case local.ExtendedClusterMeshEnabled() && theirs != local.MaxConnectedClusters:
		return fmt.Errorf("the cluster has --max-connected-clusters=%d, this one has %d",
			theirs, local.MaxConnectedClusters)
	}
	return nil
}
