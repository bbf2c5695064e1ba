// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/waggle-mesh/waggle/bench/page"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// OneReport is the report of any benchmark.
type OneReport interface {
	json.Marshaler
	WriteText(io.Writer) error
	Section() (page.Section, error)
}

// SuiteConfig is a short version of all benchmarks. Those whose size is 0 are left
// out.
type SuiteConfig struct {
	// Config is what the benchmarks share. Its Mesh is the largest of those that
	// KVStoreMesh is measured with, and Peers are of all benchmarks that have such
	// a peer; their programs are beside Program.
	Config
	// Rates are the events per second of Churn.
	Rates []float64
	// Duration is how long events are sent, in each benchmark that sends any.
	Duration time.Duration
	// Entries is the number of endpoints of Ingest.
	Entries int
	// Agents is the number of readers of Fanout.
	Agents int
	// KVStoreMeshes are those of Rollout.
	KVStoreMeshes int
	// Exported is the number of endpoints of Export.
	Exported int
	// InClusterAgents is the number of agents of InCluster.
	InClusterAgents int
	// ScaleClusters is the number of clusters of Scale, with the consumer's own, each
	// as large as in a mesh of 511.
	ScaleClusters int
	// FilterClusters is the number of source clusters of SyncFilters, each a fifth as
	// large as by default.
	FilterClusters int
	// Misses are those of Miss.
	Misses int
}

// SuiteReport are the reports of several benchmarks.
type SuiteReport struct {
	Names   []string
	Reports map[string]OneReport
	// Growth are those of KVStoreMesh, from the smallest mesh to the largest.
	Growth []*Report
	// Skipped says why a benchmark was left out, by name.
	Skipped map[string]string
}

func (s *SuiteReport) add(name string, report OneReport) {
	s.Names = append(s.Names, name)
	s.Reports[name] = report
}

// step is one benchmark of a suite.
type step struct {
	name string
	run  func(context.Context) (OneReport, error)
}

// Suite runs all benchmarks one after the other. One that this machine can't do is
// left out: those with a BPF map or with network namespaces where that isn't permitted, and Export, InCluster
// and SyncFilters without the program of the kube-apiserver.
func Suite(ctx context.Context, config SuiteConfig) (*SuiteReport, error) {
	suite := &SuiteReport{Reports: map[string]OneReport{}, Skipped: map[string]string{}}
	var (
		steps []step
		at    int
	)
	if told := config.Steps; told != nil {
		// Each benchmark has an equal share of the whole, however many steps it has.
		const share = 100
		config.Steps = func(done, of int) { told(at*share+done*share/max(of, 1), len(steps)*share) }
	}
	steps = config.steps()
	for i, s := range steps {
		at = i
		switch report, err := s.run(ctx); {
		case errors.Is(err, ipcache.ErrBPFNotPermitted), errors.Is(err, netns.ErrNotPermitted), errors.Is(err, errNoAPIServer):
			suite.Skipped[s.name] = err.Error()
		case err != nil:
			return nil, fmt.Errorf("%s: %w", s.name, err)
		default:
			suite.add(s.name, report)
			if of, ok := report.(*Report); ok {
				suite.Growth = append(suite.Growth, of)
			}
		}
	}
	return suite, nil
}

// steps are the benchmarks to run: KVStoreMesh with a quarter, a half and all of
// the clusters, and its restart and switch with all; Churn at each rate; and one
// of each of the others.
func (c SuiteConfig) steps() (steps []step) {
	add := func(name string, run func(context.Context) (OneReport, error)) {
		steps = append(steps, step{name, run})
	}
	sizes := []int{max(1, c.Mesh.Clusters/4), max(1, c.Mesh.Clusters/2), c.Mesh.Clusters}
	for _, clusters := range slices.Compact(sizes) {
		one := c.Config
		one.Mesh.Clusters, one.Scenarios = clusters, []string{ScenarioStart}
		if clusters == c.Mesh.Clusters {
			one.Scenarios = Scenarios
		}
		add(fmt.Sprintf("kvstoremesh-%d", clusters), func(ctx context.Context) (OneReport, error) { return KVStoreMesh(ctx, one) })
	}
	for _, rate := range c.Rates {
		add("churn-"+strconv.FormatFloat(rate, 'f', -1, 64), func(ctx context.Context) (OneReport, error) {
			return Churn(ctx, ChurnConfig{Config: c.Config, Rate: rate, Duration: c.Duration, Drain: c.Duration})
		})
	}
	if c.Entries > 0 {
		add("ingest", func(ctx context.Context) (OneReport, error) {
			one := c.Config
			one.Mesh = Mesh{Clusters: 1, Endpoints: c.Entries, Nodes: max(1, c.Entries/100), Identities: max(1, c.Entries/100), Seed: c.Mesh.Seed}
			return Ingest(ctx, one)
		})
	}
	if c.KVStoreMeshes > 0 {
		add("rollout", func(ctx context.Context) (OneReport, error) {
			return Rollout(ctx, RolloutConfig{Config: c.Config, KVStoreMeshes: c.KVStoreMeshes})
		})
	}
	if c.Agents > 0 {
		add("fanout", func(ctx context.Context) (OneReport, error) {
			return Fanout(ctx, FanoutConfig{Config: c.Config, Agents: c.Agents, Rate: 100, Duration: c.Duration, Drain: time.Minute, Commits: []int{1, 20}})
		})
	}
	if c.Exported > 0 {
		add("export", c.export)
	}
	if c.InClusterAgents > 0 {
		add("incluster", c.inCluster)
	}
	if c.ScaleClusters > 0 {
		add("scale", c.scale)
	}
	if c.FilterClusters > 0 {
		add("filters", c.filters)
	}
	if c.Misses > 0 {
		add("miss", func(ctx context.Context) (OneReport, error) {
			return Miss(ctx, MissConfig{Config: c.Config, Misses: c.Misses, Concurrency: 64, Scan: 100 * c.Misses, Entries: max(1, c.Entries)})
		})
	}
	return steps
}

// errNoAPIServer says that the program of the kube-apiserver isn't there.
var errNoAPIServer = errors.New("there is no kube-apiserver")

func (c SuiteConfig) export(ctx context.Context) (OneReport, error) {
	if _, err := peerProgram("", c.Program, apiServerProgram); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAPIServer, err)
	}
	one := c.Config
	one.Mesh = Mesh{Clusters: 1, Endpoints: c.Exported, Nodes: max(1, c.Exported/20), Identities: max(1, c.Exported/20), Seed: c.Mesh.Seed}
	return Export(ctx, ExportConfig{Config: one, Modes: []string{CES}, Rate: 100, Duration: c.Duration, Drain: time.Minute})
}

func (c SuiteConfig) inCluster(ctx context.Context) (OneReport, error) {
	if _, err := peerProgram("", c.Program, apiServerProgram); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAPIServer, err)
	}
	return InCluster(ctx, InClusterConfig{
		Config: c.Config, Agents: c.InClusterAgents, Pods: 500, Rate: 100, ServicesRate: 5, Duration: c.Duration, Drain: time.Minute,
		Wait: inclustercache.DefaultConfig.CommitDelay,
	})
}

// scale is a part of the largest mesh: so many of 511 clusters, of 50,000 nodes and
// of 500,000 endpoints.
func (c SuiteConfig) scale(ctx context.Context) (OneReport, error) {
	n := c.ScaleClusters
	one := c.Config
	var err error
	if one.Mesh, err = ScaleMesh(n, n*98, n*980, 100, c.Mesh.Seed); err != nil {
		return nil, err
	}
	return Scale(ctx, ScaleConfig{
		Config: one, Growth: []int{max(2, n/4), max(2, n/2)},
		Idle: c.Duration, NodeRate: 50, EndpointRates: []float64{100, 500}, Duration: c.Duration, Drain: time.Minute,
	})
}

func (c SuiteConfig) filters(ctx context.Context) (OneReport, error) {
	if _, err := peerProgram("", c.Program, apiServerProgram); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAPIServer, err)
	}
	one := c.Config
	one.Mesh = Mesh{Clusters: c.FilterClusters, Endpoints: 400, Nodes: 40, Identities: 40, Services: 20, Seed: c.Mesh.Seed}
	return SyncFilters(ctx, FiltersConfig{
		Config: one, Filters: Filters{OptIn: 0.05, Regional: 0.8, Regions: 5}, Rate: 100, Duration: c.Duration, Idle: c.Duration, Drain: time.Minute,
	})
}

// MarshalJSON gives each report as a field of its name.
func (s *SuiteReport) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	for name, report := range s.Reports {
		out[name] = report
	}
	if len(s.Skipped) > 0 {
		out["skipped"] = s.Skipped
	}
	return json.Marshal(out)
}

// WriteText writes one report after the other.
func (s *SuiteReport) WriteText(w io.Writer) error {
	for _, name := range s.Names {
		if err := s.Reports[name].WriteText(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for name, reason := range s.Skipped {
		fmt.Fprintf(w, "%s was left out: %s\n", name, reason)
	}
	return nil
}

// Sections are the parts of a page: how cost grows, and each benchmark's.
func (s *SuiteReport) Sections() ([]page.Section, error) {
	growth, err := growthSection(s.Growth)
	if err != nil {
		return nil, err
	}
	sections := []page.Section{growth}
	for _, name := range s.Names {
		section, err := s.Reports[name].Section()
		if err != nil {
			return nil, err
		}
		sections = append(sections, section)
	}
	return sections, nil
}

// growthSection plots what KVStoreMesh costs against the number of keys.
func growthSection(reports []*Report) (page.Section, error) {
	var drawings []drawing
	for _, of := range []struct {
		title, unit string
		value       func(Figures) float64
	}{
		{"Time until ready", "seconds", func(f Figures) float64 { return f.ReadySeconds }},
		{"CPU until ready, with the local etcd's", "seconds", func(f Figures) float64 { return f.CPUSeconds + f.EtcdCPUSeconds }},
		{"Peak memory", "MiB", func(f Figures) float64 { return float64(f.PeakRSSBytes) / (1 << 20) }},
	} {
		plot := page.Plot{X: "keys", Y: of.unit}
		for i, name := range reports[0].Subjects() {
			line := page.Line{Name: name, Color: i}
			for _, r := range reports {
				line.Points = append(line.Points, page.Point{X: float64(r.Mesh.Keys()), Y: of.value(r.Median(name))})
			}
			plot.Lines = append(plot.Lines, line)
		}
		drawings = append(drawings, drawing{of.title, "Of KVStoreMesh, against the size of the mesh.", plot})
	}
	figures, err := draw(drawings...)
	return page.Section{Title: "Growth with size", Figures: figures}, err
}
