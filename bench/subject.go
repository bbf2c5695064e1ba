// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// subject is a program that does what KVStoreMesh does: with the same sources
// and an empty local etcd, it is measured from its start until that is complete.
type subject struct {
	// name is that of its figures in a report.
	name string
	// allowed says what limits it was given.
	allowed string
	// argv is its command line.
	argv func(environment) []string
	// canaries are the resources whose canaries it writes, for each cluster,
	// when they are complete.
	canaries []wire.Resource
	// configs: it writes the clusters' configs.
	configs bool
	// restarts: it can be started again on what it wrote. switches: it notices
	// that another etcd answers at an address.
	restarts, switches bool
}

// environment is what a subject finds.
type environment struct {
	mesh Mesh
	// clusterMeshConfig is the directory of the sources' etcd configurations.
	clusterMeshConfig string
	// localConfig is the etcd configuration file of the local etcd.
	localConfig string
	// address is a loopback address of the subject's own.
	address string
	// socket is a path for a socket.
	socket string
	// healthPort is where to serve /readyz; 0 is nowhere.
	healthPort int
	// cached: the sources hold what a KVStoreMesh has cached.
	cached bool
}

// Waggle is the name of our own subject.
const Waggle = "waggle"

// The peers of KVStoreMesh.
const (
	// Upstream is upstream's KVStoreMesh with its limits lifted.
	Upstream = "upstream"
	// UpstreamShipped is upstream's KVStoreMesh with the limits of its chart.
	UpstreamShipped = "upstream-shipped"
	// Mirror is etcd's own mirror maker. It only copies keys, so that it has a
	// part in the benchmark of KVStoreMesh alone, and it isn't switched.
	Mirror = "mirror"
)

// maxMirrored is the number of clusters up to which Mirror is measured: it has a
// mirror maker for each prefix of each cluster, and writes one key at a time.
const maxMirrored = 20

// KVStoreMeshPeers are the names of all peers but Mirror.
var KVStoreMeshPeers = []string{Upstream, UpstreamShipped}

// upstreamLimits are the values of upstream's --kvstore-opt, by peer.
//
// As shipped they are those of the chart of v1.19.3
// (install/kubernetes/cilium/templates/clustermesh-apiserver/deployment.yaml,
// kvstoremesh's args), where etcd.limit isn't set: it is 256, the client's own
// default. Lifted, requests aren't limited per second and pages are large. Of 20,
// 100, 300 and 1,000 requests in flight 100 were fastest, by little; see
// docs/performance.md.
var upstreamLimits = map[string][]string{
	Upstream:        {"etcd.qps=1000000", "etcd.bootstrapQps=1000000", "etcd.maxInflight=100", "etcd.limit=10000"},
	UpstreamShipped: {"etcd.qps=100", "etcd.bootstrapQps=10000", "etcd.maxInflight=10"},
}

// resourcesOfV119 are those of upstream's schema, version 1.19.
var resourcesOfV119 = []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints, wire.Services, wire.ServiceExports}

// waggle is our own KVStoreMesh. It is asked for nothing that the one of a user
// doesn't have.
func waggle(program string) subject {
	return subject{
		name:    Waggle,
		allowed: "as shipped",
		argv: func(env environment) []string {
			return append([]string{program, "kvstoremesh"}, env.flags()...)
		},
		canaries: resourcesOfV119, configs: true, restarts: true, switches: true,
	}
}

// upstream is upstream's KVStoreMesh, whose program was compiled from the
// version in go.mod.
func upstream(name, program string) subject {
	limits := upstreamLimits[name]
	return subject{
		name:    name,
		allowed: strings.Join(limits, " "),
		argv: func(env environment) []string {
			argv := append([]string{program, "kvstoremesh", "--enable-gops=false",
				"--api-serve-addr=" + env.address + ":0", "--shell-sock-path=" + env.socket}, env.flags()...)
			for _, limit := range limits {
				argv = append(argv, "--kvstore-opt="+limit)
			}
			return argv
		},
		canaries: resourcesOfV119, configs: true, restarts: true, switches: true,
	}
}

// flags are those that have the same names in all subjects.
func (env environment) flags() []string {
	return []string{
		"--health-port=" + strconv.Itoa(env.healthPort),
		"--cluster-name=" + localName,
		"--cluster-id=" + strconv.Itoa(localID),
		fmt.Sprintf("--max-connected-clusters=%d", env.mesh.MaxConnectedClusters()),
		"--clustermesh-config=" + env.clusterMeshConfig,
		"--kvstore-opt=etcd.config=" + env.localConfig,
	}
}

// mirror is etcd's mirror maker as a program of its own.
func mirror(program string) subject {
	return subject{
		name: Mirror,
		allowed: "etcd's mirror maker for each prefix: one put at a time, no leases, canaries or cluster configs; " +
			"ready when the number of keys is right; a restart copies everything again; a switch ends it",
		argv: func(env environment) []string {
			return []string{program, "--clustermesh-config=" + env.clusterMeshConfig, "--local-config=" + env.localConfig,
				"--health-port=" + strconv.Itoa(env.healthPort), "--cached=" + strconv.FormatBool(env.cached)}
		},
		restarts: true,
	}
}

// subjects are waggle and the peers that were asked for, in this order. They are
// of KVStoreMeshPeers, or of those that are named as well.
func (c Config) subjects(asWell ...string) ([]subject, error) {
	out := []subject{waggle(c.Program)}
	peers := slices.Concat(KVStoreMeshPeers, asWell)
	for i, name := range c.Peers {
		if !slices.Contains(peers, name) || slices.Contains(c.Peers[:i], name) {
			return nil, fmt.Errorf("peer %q: must be one or several of %s", name, strings.Join(peers, ", "))
		}
		path, file := c.PeerProgram, upstreamProgram
		if name == Mirror {
			path, file = c.MirrorProgram, mirrorProgram
			if c.Mesh.Clusters > maxMirrored {
				return nil, fmt.Errorf("peer %q: it is measured with up to %d clusters, not %d", name, maxMirrored, c.Mesh.Clusters)
			}
		}
		program, err := peerProgram(path, c.Program, file)
		if err != nil {
			return nil, err
		}
		if name == Mirror {
			out = append(out, mirror(program))
		} else {
			out = append(out, upstream(name, program))
		}
	}
	return out, nil
}

// upstreamProgram is the file name of upstream's clustermesh-apiserver, and its
// target in the Makefile below bin/.
const upstreamProgram = "upstream-clustermesh-apiserver"

// mirrorProgram is the same of the mirror maker.
const mirrorProgram = "upstream-mirror"

// peerProgram finds the program file of a peer: the one that was asked for, or
// the one of that name beside waggle's own.
func peerProgram(path, own, name string) (string, error) {
	if path == "" {
		path = filepath.Join(filepath.Dir(own), name)
	}
	switch _, err := os.Stat(path); {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("the peer's program isn't there (build it with: make bin/%s): %w", name, err)
	case err != nil:
		return "", fmt.Errorf("looking for the peer's program: %w", err)
	}
	return path, nil
}
