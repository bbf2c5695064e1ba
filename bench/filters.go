// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// FiltersConfig is what to measure of sync filters.
type FiltersConfig struct {
	// Config's Mesh are the source clusters. Peers and Layout mean nothing here: each
	// round is of waggle with filters and without, and the sources are the etcd of one
	// exporter, and a few that each have many clusters.
	Config
	Filters Filters
	// Rate is the number of pods that are replaced per second, over all clusters, for
	// Duration; and Idle how long nothing changes before that.
	Rate           float64
	Duration, Idle time.Duration
	// Drain is how long to wait afterwards for what hasn't arrived.
	Drain time.Duration
	// KubernetesProgram is the program file of the real kube-apiserver; if empty,
	// the one beside Program.
	KubernetesProgram string
}

// DefaultFiltersMesh has 250,000 keys: a node for 10 endpoints, as 50,000 nodes have
// 500,000; an identity for as many; and a global service for 20.
var DefaultFiltersMesh = Mesh{Clusters: 100, Endpoints: 2000, Nodes: 200, Identities: 200, Services: 100, Seed: 1}

// The two sides of the benchmark.
const (
	// FiltersOff syncs everything.
	FiltersOff = "off"
	// FiltersOn syncs what the filters leave.
	FiltersOn = "on"
)

func (c FiltersConfig) validate() error {
	errs := []error{c.mesh(FiltersOff).Validate()}
	if errs[0] == nil {
		errs = append(errs, c.Filters.validate(c.Mesh))
	}
	switch {
	case c.Rate <= 0 || c.Duration < time.Second || c.Idle < time.Second:
		errs = append(errs, errors.New("the rate must be positive, and the durations, with changes and without, at least a second"))
	case c.Rate*c.Duration.Seconds() > float64(c.Mesh.Clusters*c.Mesh.Endpoints):
		errs = append(errs, fmt.Errorf("%g pods/s for %s are more than the %d that there are, each of which is replaced once",
			c.Rate, c.Duration, c.Mesh.Clusters*c.Mesh.Endpoints))
	}
	return errors.Join(errs...)
}

// mesh is the mesh of one side. The first cluster has an exporter.
func (c FiltersConfig) mesh(side string) Mesh {
	m := c.Mesh
	m.exported, m.spare = 1, m.Endpoints
	if side == FiltersOn {
		m.filters = &c.Filters
	}
	return m
}

// flags are those that a side gives exporter and KVStoreMesh.
func (c FiltersConfig) flags(side string) (exporter, kvstoremesh []string) {
	if side == FiltersOff {
		return nil, nil
	}
	region := "--cluster-region=" + regionName(0)
	return []string{fmt.Sprintf("--%s=%s", filter.FlagSyncMode, filter.SyncOptIn), region}, []string{region}
}

// SyncFilters measures a mesh with sync filters and without, in turns: what is in
// each etcd, what an exporter, a KVStoreMesh, its etcd and an agent with the
// kernel's map take to start from empty, what they keep, and what they take while
// pods are replaced. The first cluster is in a real API server, with pods, and its
// exporter is the one that anybody runs; those of the others are left out, and what
// they'd have written by the same rules is in a few etcds. At the end of each side
// everything that the rules say must be there, and nothing else, or there is an
// error and no report. Without the right to use BPF the error is
// ipcache.ErrBPFNotPermitted.
func SyncFilters(ctx context.Context, config FiltersConfig) (*FiltersReport, error) {
	config.Layout = LayoutCache
	if err := config.validate(); err != nil {
		return nil, err
	}
	program, err := peerProgram(config.KubernetesProgram, config.Program, apiServerProgram)
	if err != nil {
		return nil, err
	}
	watch, err := newMapWatch(config.Log)
	if err != nil {
		return nil, err
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	head, err := b.head("filters", nil)
	if err != nil {
		return nil, err
	}
	head.Allowed[FiltersOff] = "as shipped"
	exporter, kvstoremesh := config.flags(FiltersOn)
	head.Allowed[FiltersOn] = "exporter " + strings.Join(exporter, " ") + "; kvstoremesh " + strings.Join(kvstoremesh, " ")
	report := &FiltersReport{Head: head, Filters: config.Filters, Rate: config.Rate, Seconds: config.Duration.Seconds()}
	k, err := b.startFiltersKubernetes(ctx, program, config.mesh(FiltersOff), config.Filters)
	if err != nil {
		return nil, err
	}
	defer k.close()
	b.expect(2 * config.Rounds)
	for n := range config.Rounds {
		for _, side := range []string{FiltersOff, FiltersOn} {
			run := newFilterRun(b, config, k, watch, side, fmt.Sprintf("%s-%d", side, n+1))
			if err := run.measure(ctx); err != nil {
				return nil, fmt.Errorf("round %d, filters %s: %w", n+1, side, err)
			}
			if side == FiltersOff {
				report.Sources = run.sources.info
			}
			report.Rounds = append(report.Rounds, FiltersRound{Side: side, FilterFigures: run.figures})
			b.stepDone()
		}
	}
	return report, nil
}
