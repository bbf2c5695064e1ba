// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
)

// Layout says where everything of a run is. It is a file of the run's directory,
// so that "waggle status" finds the processes.
type Layout struct {
	Dir      string
	Clusters []Place
}

// Place is where one cluster's parts are.
type Place struct {
	Cluster Cluster
	// Etcd is the address of the cluster's etcd.
	Etcd string
	// Cache is that of its in-cluster cache's, if it has one: its agent then has its
	// own cluster's state as well, from there.
	Cache string `json:",omitempty"`
	// Shells are the sockets of the processes' shells, by part.
	Shells map[string]string
	// Logs are their logs.
	Logs map[string]string
}

// Parts are the processes of a cluster, in the order in which they start.
var Parts = []string{partEtcd, partExporter, partCache, partKVStoreMesh, partAgent}

const (
	partEtcd        = "etcd"
	partExporter    = "clustermesh"
	partCache       = "incluster-cache"
	partKVStoreMesh = "kvstoremesh"
	partAgent       = "agent"

	layoutFile = "mesh.json"
)

// DefaultDir is where a run is unless a flag says otherwise.
func DefaultDir() string { return filepath.Join(os.TempDir(), "waggle-run") }

// ReadLayout reads the layout of the run in dir.
func ReadLayout(dir string) (Layout, error) {
	var layout Layout
	data, err := os.ReadFile(filepath.Join(dir, layoutFile))
	if err != nil {
		return layout, fmt.Errorf("no mesh runs in %q: %w", dir, err)
	}
	if err := json.Unmarshal(data, &layout); err != nil {
		return layout, fmt.Errorf("reading %q: %w", filepath.Join(dir, layoutFile), err)
	}
	return layout, nil
}

// has says whether the cluster has such a process.
func (p Place) has(part string) bool { return part != partCache || p.Cache != "" }

// prepare makes the files of a run: the layout, and for each cluster the etcd
// configurations of the remote clusters, as they would be mounted from a Secret.
// KVStoreMesh connects to the remote etcds, the agent finds all in the local one.
// The first cluster has an in-cluster cache, to show one.
func prepare(dir string, clusters []Cluster) (Layout, error) {
	layout := Layout{Dir: dir}
	for i, cluster := range clusters {
		place := Place{Cluster: cluster, Shells: map[string]string{}, Logs: map[string]string{}}
		var err error
		if place.Etcd, err = freeURL(); err != nil {
			return layout, err
		}
		if i == 0 {
			if place.Cache, err = freeURL(); err != nil {
				return layout, err
			}
		}
		for _, part := range Parts {
			if !place.has(part) {
				continue
			}
			place.Shells[part] = filepath.Join(dir, cluster.Name, part+".sock")
			place.Logs[part] = filepath.Join(dir, cluster.Name, part+".log")
		}
		layout.Clusters = append(layout.Clusters, place)
	}
	if err := layout.checkSockets(); err != nil {
		return layout, err
	}
	for _, place := range layout.Clusters {
		for _, part := range []string{partKVStoreMesh, partAgent} {
			if err := os.MkdirAll(layout.meshConfig(place, part), 0o700); err != nil {
				return layout, fmt.Errorf("preparing the run: %w", err)
			}
		}
		// Of a socket etcd's clients expect TLS unless they are told otherwise.
		config := fmt.Appendf(nil, "endpoints:\n- %s\ninsecure-transport: true\n", layout.readThrough(place))
		if err := os.WriteFile(layout.readThroughConfig(place), config, 0o600); err != nil {
			return layout, fmt.Errorf("preparing the run: %w", err)
		}
		for _, remote := range layout.remotes(place) {
			for part, etcd := range map[string]string{partKVStoreMesh: remote.Etcd, partAgent: place.Etcd} {
				path := filepath.Join(layout.meshConfig(place, part), remote.Cluster.Name)
				if err := os.WriteFile(path, fmt.Appendf(nil, "endpoints:\n- %s\n", etcd), 0o600); err != nil {
					return layout, fmt.Errorf("preparing the run: %w", err)
				}
			}
		}
	}
	data, err := json.MarshalIndent(layout, "", "  ")
	if err != nil {
		return layout, err
	}
	return layout, os.WriteFile(filepath.Join(dir, layoutFile), data, 0o600)
}

// meshConfig is the --clustermesh-config of a part.
func (l Layout) meshConfig(p Place, part string) string {
	return filepath.Join(l.Dir, p.Cluster.Name, part+"-clusters")
}

// readThrough is where the cluster's KVStoreMesh looks up what isn't pushed, and
// readThroughConfig the configuration of those who ask it.
func (l Layout) readThrough(p Place) string { return "unix://" + l.readThroughSocket(p) }

func (l Layout) readThroughSocket(p Place) string {
	return filepath.Join(l.Dir, p.Cluster.Name, "read-through.sock")
}

func (l Layout) readThroughConfig(p Place) string {
	return filepath.Join(l.Dir, p.Cluster.Name, "read-through.config")
}

// pins is the run's own directory in the BPF file system, so that two runs don't
// write to, or remove, each other's maps. File names there must not have a dot.
func (l Layout) pins() string {
	sum := sha256.Sum256([]byte(l.Dir))
	return "waggle-run-" + hex.EncodeToString(sum[:6])
}

// maxSocketPath is what a Unix socket's address holds (sun_path, less its final 0).
const maxSocketPath = 107

// checkSockets says whether the kernel takes the paths of the shells' sockets.
// Without its shell a process runs, and nobody can ask it; a cache doesn't run
// without its etcd's.
func (l Layout) checkSockets() error {
	for _, place := range l.Clusters {
		sockets := append(slices.Collect(maps.Values(place.Shells)), l.readThroughSocket(place))
		if place.has(partCache) {
			// Its etcd's own, in a directory with a random name: see arguments.
			sockets = append(sockets, filepath.Join(l.Dir, "waggle-etcd-4294967295", "etcd.sock"))
		}
		for _, socket := range sockets {
			if len(socket) > maxSocketPath {
				return fmt.Errorf("--run-dir=%q is too long by %d characters for the socket %q: give a shorter one",
					l.Dir, len(socket)-maxSocketPath, socket)
			}
		}
	}
	return nil
}

// remotes are the other clusters.
func (l Layout) remotes(of Place) []Place {
	return slices.DeleteFunc(slices.Clone(l.Clusters), func(p Place) bool { return p.Cluster.Name == of.Cluster.Name })
}

// freeURL finds a port of loopback that is free now. It stays an etcd's over
// restarts, so that it must be known to those who connect.
func freeURL() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	defer listener.Close()
	return "http://" + listener.Addr().String(), nil
}
