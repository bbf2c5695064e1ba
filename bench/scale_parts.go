// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import "path/filepath"

// The parts of a mesh whose use of the machine is reported.
const (
	partKVStoreMesh = "kvstoremesh"
	partEtcd        = "etcd"
	partAgent       = "agent"
)

// scaleParts are all of them, in the order of reports.
var scaleParts = []string{partKVStoreMesh, partEtcd, partAgent}

// The phases of a size, in their order. The last one is of each rate.
const (
	phaseReplicate = "replicate"
	phaseAgent     = "agent"
	phaseIdle      = "idle"
	phaseChurn     = "churn-%g"
)

// scaleRun measures one size of a mesh.
type scaleRun struct {
	*benchmark
	accounts
	config   ScaleConfig
	watch    *mapWatch
	capacity int
	mesh     Mesh
	name     string

	figures ScaleFigures
}

func (r *scaleRun) file(kind string) string { return filepath.Join(r.dir, r.name+"-"+kind) }
