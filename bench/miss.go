// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/bench/await"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// MissConfig is what Miss measures.
type MissConfig struct {
	Config
	// Misses is the number of addresses that packets are sent to, each of which only
	// the other cluster's etcd knows, and Concurrency how many of them at a time.
	Misses, Concurrency int
	// Scan is the number of packets to absent addresses that another pod sends
	// afterwards, as fast as it can, while single misses are measured; 0 leaves it out.
	Scan int
	// Entries is the size of the map in which the time for a packet is measured.
	Entries int
}

// Register adds the flags.
func (c *MissConfig) Register(flags *pflag.FlagSet) {
	flags.IntVar(&c.Misses, "misses", 10_000, "Number of addresses that are sent to and aren't in the map")
	flags.IntVar(&c.Concurrency, "concurrency", 64, "How many of them at a time")
	flags.IntVar(&c.Scan, "scan", 1_000_000, "Packets to absent addresses that another pod sends while single misses are measured; 0 leaves it out")
	flags.IntVar(&c.Entries, "entries", 500_000, "Size of the map in which the time for a packet is measured")
}

const (
	// maxMisses have addresses that no address of the node itself is among.
	maxMisses = 60_000
	// missNodes and missIdentities are those of the other cluster.
	missNodes, missIdentities = 10, 100
)

// singles is the number of single misses during the scan.
func (c *MissConfig) singles() int { return min(200, max(10, c.Misses/50)) }

func (c *MissConfig) validate() error {
	switch {
	case c.Misses < 1 || c.Misses > maxMisses:
		return fmt.Errorf("%d misses: must be between 1 and %d", c.Misses, maxMisses)
	case c.Concurrency < 1 || c.Concurrency > await.MaxAwaited:
		return fmt.Errorf("%d misses at a time: must be between 1 and %d", c.Concurrency, await.MaxAwaited)
	case c.Scan < 0:
		return errors.New("a scan can't have fewer than no packets")
	case c.Entries < 1 || c.Entries > 1<<20:
		return fmt.Errorf("a map of %d entries: must be between 1 and %d", c.Entries, 1<<20)
	}
	return nil
}

// mesh is one cluster whose endpoints and identities aren't pushed. It has some more than
// are measured: one that is waited for at the start of an agent, and those of the scan.
func (c *MissConfig) mesh() Mesh {
	return Mesh{Clusters: 1, Endpoints: c.Misses + c.singles() + 2, Nodes: missNodes, Identities: missIdentities, Seed: c.Mesh.Seed, onDemand: true}
}

// Miss measures how long it takes from a packet to an address that the ipcache map
// doesn't know until the map has it: through the signal of the kernel, an agent, a
// KVStoreMesh's read-through and the other cluster's etcd, with each part as a process of
// its own, in network namespaces. The errors for a process that may not do that are
// ipcache.ErrBPFNotPermitted and netns.ErrNotPermitted.
func Miss(ctx context.Context, config MissConfig) (*MissReport, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	config.Mesh, config.Layout = config.mesh(), LayoutState
	watch, err := newMapWatch(config.Log) // only to see whether it can be
	if err != nil {
		return nil, err
	}
	if err := watch.remove(); err != nil {
		return nil, err
	}
	probe, err := netns.New()
	if err != nil {
		return nil, err
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	head, err := b.head("miss", []subject{{name: Waggle, allowed: "limits of rates lifted for the misses, as shipped for the scan"}})
	if err != nil {
		return nil, err
	}
	head.Sources = SourceInfo{Layout: LayoutState, Etcds: 1, Keys: config.Mesh.Keys()}
	report := &MissReport{Head: head, Misses: config.Misses, Concurrency: config.Concurrency, Entries: config.Entries}
	b.expect(config.Rounds)
	for n := range config.Rounds {
		b.progress("round %d of %d", n+1, config.Rounds)
		figures, err := b.missRound(ctx, config, n+1)
		if err != nil {
			return nil, fmt.Errorf("round %d: %w", n+1, err)
		}
		report.Rounds = append(report.Rounds, figures)
		b.stepDone()
	}
	return report, nil
}

// missRound has a process make one round, which is in namespaces of its own with all
// that it starts.
func (b *benchmark) missRound(ctx context.Context, config MissConfig, n int) (f MissFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, config.Timeout, fmt.Errorf("not ready within %s", config.Timeout))
	defer cancel()
	name := fmt.Sprintf("node-%d", n)
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, err
	}
	p, err := process.Start(name, b.dir, []string{config.Program, "bench", "misses",
		"--misses=" + strconv.Itoa(config.Misses), "--concurrency=" + strconv.Itoa(config.Concurrency),
		"--scan=" + strconv.Itoa(config.Scan), "--entries=" + strconv.Itoa(config.Entries),
		"--seed=" + strconv.FormatUint(config.Mesh.Seed, 10), "--dir=" + dir}, nil)
	if err != nil {
		return f, err
	}
	defer p.Kill()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return f, fmt.Errorf("%w\n%s", context.Cause(ctx), p.LogTail())
	}
	raw, err := os.ReadFile(filepath.Join(dir, missResult))
	if err != nil {
		return f, fmt.Errorf("%w\n%s", p.Err(), p.LogTail())
	}
	var result missOutcome
	if err := json.Unmarshal(raw, &result); err != nil {
		return f, fmt.Errorf("reading the figures of %s: %w", name, err)
	}
	result.Figures.latencies, result.Figures.inScan = result.Latencies, result.InScan
	return result.Figures, nil
}

// missResult is the name of the file in which a node leaves what it has measured.
const missResult = "figures.json"

// missOutcome is what is in it.
type missOutcome struct {
	Figures           MissFigures
	Latencies, InScan *hdrhistogram.Snapshot
}

// RunMissNode is one round, as a process that starts all others: to be run by
// netns.Isolate.
func RunMissNode(ctx context.Context, config MissConfig) error {
	if err := config.validate(); err != nil {
		return err
	}
	if !netns.Isolated() {
		return errors.New("this process isn't in namespaces of its own")
	}
	config.Mesh, config.Layout = config.mesh(), LayoutState
	b, err := newBenchmark(config.Config)
	if err != nil {
		return err
	}
	defer b.close()
	n := &missNode{benchmark: b, config: config, cluster: config.Mesh.Cluster(0)}
	f, err := n.measure(ctx)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(missOutcome{f, f.latencies, f.inScan})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, missResult), raw, 0o600)
}
