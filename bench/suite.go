// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/waggle-mesh/waggle/bench/page"
	"github.com/waggle-mesh/waggle/ipcache"
)

// OneReport is the report of any benchmark.
type OneReport interface {
	json.Marshaler
	WriteText(io.Writer) error
	Section() (page.Section, error)
}

// SuiteConfig is a short version of all benchmarks.
type SuiteConfig struct {
	// Config is what the benchmarks share. Its Mesh is the largest of those that
	// KVStoreMesh is measured with, and Peers are of all benchmarks.
	Config
	// IngestProgram is the peer of Ingest; if empty, the one beside Program.
	IngestProgram string
	// Rates are the events per second of Churn, for so long each.
	Rates    []float64
	Duration time.Duration
	// Entries is the number of endpoints of Ingest; 0 leaves it out.
	Entries int
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

// Suite runs all benchmarks one after the other: KVStoreMesh with a quarter, a
// half and all of the clusters, Churn at each rate, and Ingest, which is left
// out where BPF maps can't be used.
func Suite(ctx context.Context, config SuiteConfig) (*SuiteReport, error) {
	suite := &SuiteReport{Reports: map[string]OneReport{}, Skipped: map[string]string{}}
	last := 0
	for _, clusters := range []int{max(1, config.Mesh.Clusters/4), max(1, config.Mesh.Clusters/2), config.Mesh.Clusters} {
		if clusters == last {
			continue
		}
		last = clusters
		one := config.Config
		one.Mesh.Clusters = clusters
		report, err := KVStoreMesh(ctx, one)
		if err != nil {
			return nil, fmt.Errorf("kvstoremesh with %d clusters: %w", clusters, err)
		}
		suite.Growth = append(suite.Growth, report)
		suite.add("kvstoremesh-"+strconv.Itoa(clusters), report)
	}
	for _, rate := range config.Rates {
		report, err := Churn(ctx, ChurnConfig{Config: config.Config, Rate: rate, Duration: config.Duration, Drain: config.Duration})
		if err != nil {
			return nil, fmt.Errorf("churn at %g/s: %w", rate, err)
		}
		suite.add("churn-"+strconv.FormatFloat(rate, 'f', -1, 64), report)
	}
	if config.Entries == 0 {
		return suite, nil
	}
	one := config.Config
	one.PeerProgram = config.IngestProgram
	one.Mesh = Mesh{Clusters: 1, Endpoints: config.Entries, Nodes: max(1, config.Entries/100), Identities: max(1, config.Entries/100), Seed: config.Mesh.Seed}
	switch report, err := Ingest(ctx, one); {
	case errors.Is(err, ipcache.ErrBPFNotPermitted):
		suite.Skipped["ingest"] = err.Error()
	case err != nil:
		return nil, fmt.Errorf("ingest: %w", err)
	default:
		suite.add("ingest", report)
	}
	return suite, nil
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
