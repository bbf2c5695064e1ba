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
}

// Waggle is the name of our own subject.
const Waggle = "waggle"

// The peers of KVStoreMesh.
const (
	// Upstream is upstream's KVStoreMesh with its limits lifted.
	Upstream = "upstream"
	// UpstreamShipped is upstream's KVStoreMesh with the limits of its chart.
	UpstreamShipped = "upstream-shipped"
)

// KVStoreMeshPeers are the names of all peers.
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
			return append([]string{program, "kvstoremesh", "--health-port=0"}, env.flags()...)
		},
		canaries: resourcesOfV119,
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
				"--health-port=0", "--api-serve-addr=" + env.address + ":0", "--shell-sock-path=" + env.socket}, env.flags()...)
			for _, limit := range limits {
				argv = append(argv, "--kvstore-opt="+limit)
			}
			return argv
		},
		canaries: resourcesOfV119,
	}
}

// flags are those that have the same names in all subjects.
func (env environment) flags() []string {
	return []string{
		"--cluster-name=" + localName,
		"--cluster-id=" + strconv.Itoa(localID),
		fmt.Sprintf("--max-connected-clusters=%d", env.mesh.MaxConnectedClusters()),
		"--clustermesh-config=" + env.clusterMeshConfig,
		"--kvstore-opt=etcd.config=" + env.localConfig,
	}
}

// subjects are waggle and the peers that were asked for, in this order.
func (c Config) subjects() ([]subject, error) {
	out := []subject{waggle(c.Program)}
	for i, name := range c.Peers {
		if !slices.Contains(KVStoreMeshPeers, name) || slices.Contains(c.Peers[:i], name) {
			return nil, fmt.Errorf("peer %q: must be one or several of %s", name, strings.Join(KVStoreMeshPeers, ", "))
		}
		program, err := peerProgram(c.PeerProgram, c.Program, upstreamProgram)
		if err != nil {
			return nil, err
		}
		out = append(out, upstream(name, program))
	}
	return out, nil
}

// upstreamProgram is the file name of upstream's clustermesh-apiserver, and its
// target in the Makefile below bin/.
const upstreamProgram = "upstream-clustermesh-apiserver"

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
