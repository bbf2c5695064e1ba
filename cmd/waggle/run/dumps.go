// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package run runs a whole mesh on this machine from directories of manifests:
// every part as a process of its own, on loopback, with real etcds.
//
//	dumps.go      what a directory of dumps says about its clusters
//	layout.go     where everything of a run is: ports, files, sockets
//	process.go    one process, started again when it ends
//	mesh.go       the processes of all clusters
//	inspect.go    what the running processes know, by their shells
//	status.go     the status table
//	filters.go    what filters leave out
//	explain.go    why a pod is or isn't synced, and to whom
//	truth.go      what the manifests say, read again independently
//	edits.go      how long an edit takes to reach the other clusters' maps
//	run.go        the story of a run, as the user sees it
package run

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cluster is one cluster of a directory of dumps.
type Cluster struct {
	Name string
	ID   uint32
	// Manifests is the cluster's directory.
	Manifests string
	// EndpointSlices: it keeps its endpoints in CiliumEndpointSlices.
	EndpointSlices bool
	// MCSAPI: it exports services of the Multi-Cluster Services API.
	MCSAPI bool
	// MaxConnectedClusters is 255 or 511.
	MaxConnectedClusters uint32
	// Region is the cluster's, and Namespaces and Workloads are its exporter's filters.
	Region     string
	Namespaces filter.NamespacePolicy
	Workloads  filter.WorkloadPolicy
	// NoNamespaces: the dump has none, so that nothing in it is known to be in a
	// global namespace, and little of it is exported.
	NoNamespaces bool
}

// ReadDumps finds the clusters in dir, one for each subdirectory with manifests,
// ordered by ID. What the ConfigMap "cilium-config" says counts; without it the
// name is the directory's, and the ID is that of the cluster's identities, or
// the next one that is free.
func ReadDumps(dir string) ([]Cluster, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the mesh: %w", err)
	}
	var clusters []Cluster
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if info, err := os.Stat(path); err != nil || !info.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		cluster, found, err := readDump(path)
		if err != nil {
			return nil, err
		}
		if found {
			clusters = append(clusters, cluster)
		}
	}
	if len(clusters) == 0 {
		return nil, fmt.Errorf("reading the mesh: %q has no subdirectory with manifests; "+
			"each cluster has one, for instance of files from 'kubectl get ciliumendpoints -A -o yaml'", dir)
	}
	return clusters, assignIDs(clusters)
}

// assignIDs completes and checks names and IDs, and orders by ID.
func assignIDs(clusters []Cluster) error {
	used := make(map[uint32]string)
	named := make(map[string]string)
	for _, c := range clusters {
		if other, ok := named[c.Name]; ok {
			return fmt.Errorf("the clusters in %q and %q are both named %q", other, c.Manifests, c.Name)
		}
		named[c.Name] = c.Manifests
		if c.ID == 0 {
			continue
		}
		if other, ok := used[c.ID]; ok {
			return fmt.Errorf("clusters %q and %q both have ID %d", other, c.Name, c.ID)
		}
		used[c.ID] = c.Name
	}
	next := uint32(1)
	for i := range clusters {
		c := &clusters[i]
		if c.ID == 0 {
			for used[next] != "" {
				next++
			}
			c.ID = next
			used[c.ID] = c.Name
		}
		info := wire.ClusterInfo{ID: c.ID, Name: c.Name, MaxConnectedClusters: c.MaxConnectedClusters}
		if err := wire.ValidateLocalCluster(info); err != nil {
			return fmt.Errorf("cluster in %q: %w", c.Manifests, err)
		}
	}
	slices.SortFunc(clusters, func(a, b Cluster) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// glimpse is the little of a manifest that is looked at here.
type glimpse struct {
	Kind     string                `json:"kind"`
	Metadata struct{ Name string } `json:"metadata"`
	Data     map[string]string     `json:"data"`
	Items    []glimpse             `json:"items"`
}

// readDump reads what must be known about a cluster before its processes start.
// Malformed documents are the exporter's to report.
func readDump(dir string) (Cluster, bool, error) {
	c := Cluster{Name: filepath.Base(dir), Manifests: dir, NoNamespaces: true,
		Namespaces: filter.DefaultNamespacePolicy, Workloads: filter.DefaultWorkloadPolicy,
		MaxConnectedClusters: wire.DefaultClusterInfo.MaxConnectedClusters}
	var (
		found    bool
		identity uint64
		config   map[string]string
	)
	see := func(g glimpse) {
		found = found || g.Kind != ""
		switch g.Kind {
		case "ConfigMap":
			if g.Metadata.Name == "cilium-config" {
				config = g.Data
			}
		case "CiliumEndpointSlice":
			c.EndpointSlices = true
		case "ServiceExport":
			c.MCSAPI = true
		case "Namespace":
			c.NoNamespaces = false
		case "CiliumIdentity":
			identity, _ = strconv.ParseUint(g.Metadata.Name, 10, 32)
		}
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
		default:
			return err
		}
		if err != nil {
			return err
		}
		// Opening a pipe, say, would wait for who writes to it.
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return nil
		}
		return glance(path, see)
	})
	if err != nil || !found {
		return c, false, err
	}
	c.apply(config)
	if err := c.Workloads.Validate(); err != nil {
		return c, false, fmt.Errorf("cluster in %q: cilium-config: %w", dir, err)
	}
	if c.ID == 0 && identity > 0 {
		c.ID = wire.ClusterIDOf(uint32(identity), c.MaxConnectedClusters)
	}
	return c, true, nil
}

// apply takes over what a cluster's cilium-config says.
func (c *Cluster) apply(config map[string]string) {
	c.Name = cmp.Or(config["cluster-name"], c.Name)
	if id, err := strconv.ParseUint(config["cluster-id"], 10, 32); err == nil {
		c.ID = uint32(id)
	}
	if limit, err := strconv.ParseUint(config["max-connected-clusters"], 10, 32); err == nil {
		c.MaxConnectedClusters = uint32(limit)
	}
	if slices, err := strconv.ParseBool(config["enable-cilium-endpoint-slice"]); err == nil {
		c.EndpointSlices = slices
	}
	if mcsAPI, err := strconv.ParseBool(config["clustermesh-enable-mcs-api"]); err == nil {
		c.MCSAPI = mcsAPI
	}
	c.Region = cmp.Or(config[export.FlagClusterRegion], c.Region)
	c.Workloads.Mode = filter.SyncMode(cmp.Or(config[filter.FlagSyncMode], string(c.Workloads.Mode)))
	if global, err := strconv.ParseBool(config[filter.FlagDefaultGlobalNamespace]); err == nil {
		c.Namespaces.DefaultGlobal = global
	}
}

// glance calls see for every object of a file, as far as it can be read.
func glance(path string, see func(glimpse)) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was there a moment ago
	}
	if err != nil {
		return fmt.Errorf("reading the mesh: %w", err)
	}
	defer file.Close()
	decoder := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		var g glimpse
		if err := decoder.Decode(&g); err != nil {
			return nil
		}
		see(g)
		for _, item := range g.Items {
			see(item)
		}
	}
}
