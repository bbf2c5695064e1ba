// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package mesh runs clusters of Waggle's own hives in one process, for tests
// that need a mesh rather than one room. Every part is the one that the programs
// run, on real embedded etcds, and can be stopped and started by itself:
//
//	Kubernetes ─▶ Exporter ─▶ etcd of the cluster ─┐
//	                                               ├─▶ KVStoreMesh ─▶ etcd of another cluster ─▶ Agent
//	                         etcds of other clusters ─┘
//
//	mesh.go       a cluster, and the parts that run in it
//	hive.go       a hive that is stopped and started
//	etcd.go       an etcd behind an address that stays (testing/relay)
//	roles.go      its users, as upstream makes them
//	directory.go  a --clustermesh-config directory
//	objects.go    Kubernetes objects in memory
//	cache.go      the in-cluster cache, and an agent that reads it
//	agent.go      what an agent has taken in
//	follower.go   what an agent's tables have lost in between
//
// What a test starts ends with the test. Parts are for the test's goroutine
// alone, unless they say otherwise.
package mesh

import (
	"maps"
	"strconv"
	"testing"

	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// Cluster is one cluster of the mesh, with the etcd that holds its own state and
// what its KVStoreMesh caches of others.
type Cluster struct {
	Name string
	ID   uint32
	Etcd *Etcd
}

// NewCluster makes a cluster with an etcd and nothing else running in it.
func NewCluster(t testing.TB, name string, id uint32) *Cluster {
	t.Helper()
	return &Cluster{Name: name, ID: id, Etcd: StartEtcd(t)}
}

// Flags are flags of a hive, by their names.
type Flags map[string]string

// Flags are the cluster's name and ID as flags, with others added; of those of
// one name the last counts.
func (c *Cluster) Flags(more ...Flags) Flags {
	flags := Flags{
		"cluster-name": c.Name,
		"cluster-id":   strconv.FormatUint(uint64(c.ID), 10),
	}
	for _, set := range more {
		maps.Copy(flags, set)
	}
	return flags
}

// localEtcd are the flags of a part that writes into the cluster's etcd.
func (c *Cluster) localEtcd() Flags {
	return Flags{"kvstore-opt": etcd.OptAddress + "=" + c.Etcd.URL()}
}

// Exporter is "waggle clustermesh".
type Exporter struct {
	*Hive
	// Export tells what was exported; set by each start.
	Export *export.Exporter
}

// NewExporter makes an exporter of what the objects hold, to be started.
func (c *Cluster) NewExporter(t testing.TB, objects *Objects, flags ...Flags) *Exporter {
	t.Helper()
	return c.newExporter(t, cell.Group(
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(wire.DefaultMCSAPIConfig),
		cell.Provide(func() client.Clientset { return objects }),
		cells.ExporterParts,
	), flags)
}

// NewExporterFrom makes an exporter of what an API server has, or a directory of
// manifests: the flags say which (k8s-kubeconfig-path, k8s-manifests).
func (c *Cluster) NewExporterFrom(t testing.TB, flags ...Flags) *Exporter {
	t.Helper()
	return c.newExporter(t, cells.Exporter, flags)
}

func (c *Cluster) newExporter(t testing.TB, parts cell.Cell, flags []Flags) *Exporter {
	t.Helper()
	e := &Exporter{}
	e.Hive = NewHive(t, c.Flags(append([]Flags{c.localEtcd()}, flags...)...), parts,
		cell.Invoke(func(exporter *export.Exporter) { e.Export = exporter }))
	return e
}

// KVStoreMesh is "waggle kvstoremesh".
type KVStoreMesh struct {
	*Hive
	// Readiness tells when the clusters known at start are cached; set by each
	// start.
	Readiness *kvstoremesh.Readiness
}

// NewKVStoreMesh makes a KVStoreMesh that caches the clusters of the directory in
// the cluster's etcd, to be started.
func (c *Cluster) NewKVStoreMesh(t testing.TB, remotes *Directory, flags ...Flags) *KVStoreMesh {
	t.Helper()
	k := &KVStoreMesh{}
	own := c.localEtcd()
	own["clustermesh-config"] = remotes.Path
	own["enable-heartbeat"] = "true"
	k.Hive = NewHive(t, c.Flags(append([]Flags{own}, flags...)...), cells.KVStoreMesh,
		cell.Invoke(func(readiness *kvstoremesh.Readiness) { k.Readiness = readiness }))
	return k
}
