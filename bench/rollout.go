// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/bench/rollout"
)

// RolloutConfig is what to measure of a source's replacement.
type RolloutConfig struct {
	// Config's Mesh has one cluster, and its PeerProgram is the one of rollouts.
	Config
	// KVStoreMeshes is the number of those that are connected to the source.
	KVStoreMeshes int
}

// RolloutPeers are the names of the peers of a rollout: the side of upstream's
// KVStoreMesh that reads a source, with its limits lifted or as shipped.
var RolloutPeers = []string{Upstream, UpstreamShipped}

// maxRolledOut is the number of IDs that are left for KVStoreMeshes: each is
// connected under the name of a cluster.
const maxRolledOut = 253

// rolloutProgram is the file name of the peer's program.
const rolloutProgram = "upstream-rollout"

func (c RolloutConfig) subjects() ([]subject, error) {
	side := fmt.Sprintf("the side that reads, of %d KVStoreMeshes in one process", c.KVStoreMeshes)
	out := []subject{{name: Waggle, allowed: side + ", as shipped"}}
	for i, name := range c.Peers {
		if !slices.Contains(RolloutPeers, name) || slices.Contains(c.Peers[:i], name) {
			return nil, fmt.Errorf("peer %q: must be one or several of %s", name, strings.Join(RolloutPeers, ", "))
		}
		out = append(out, subject{name: name, allowed: side + ", " + strings.Join(upstreamLimits[name], " ")})
	}
	return out, nil
}

// Rollout measures what happens when the etcd of a source, and what leads to it,
// is replaced by another one while many KVStoreMeshes are connected: as in the
// rollout of an API server of the mesh. All of them come back at once, to an etcd
// that they don't know.
//
// The KVStoreMeshes are the side that reads, many of them in one process: their
// local etcds would not fit one machine, and make no difference to the source.
func Rollout(ctx context.Context, config RolloutConfig) (*RolloutReport, error) {
	config.Mesh.Clusters, config.Layout = 1, LayoutState
	if err := config.Mesh.Validate(); err != nil {
		return nil, err
	}
	if config.KVStoreMeshes < 1 || config.KVStoreMeshes > maxRolledOut || config.Mesh.Endpoints < 1 {
		return nil, fmt.Errorf("there must be KVStoreMeshes, up to %d, and endpoints of which some differ afterwards", maxRolledOut)
	}
	subjects, err := config.subjects()
	if err != nil {
		return nil, err
	}
	var program string
	if len(config.Peers) > 0 {
		if program, err = peerProgram(config.PeerProgram, config.Program, rolloutProgram); err != nil {
			return nil, err
		}
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	b.counted = true
	head, err := b.head("rollout", subjects)
	if err != nil {
		return nil, err
	}
	differences := filepath.Join(b.dir, "differences.json")
	if err := writeDifferences(config.Mesh, differences); err != nil {
		return nil, err
	}
	report := &RolloutReport{Head: head, KVStoreMeshes: config.KVStoreMeshes}
	b.expect(config.Rounds * len(subjects))
	for n := range config.Rounds {
		for _, s := range subjects {
			b.progress("round %d of %d: %s", n+1, config.Rounds, s.name)
			argv := []string{config.Program, "bench", "meshes"}
			if s.name != Waggle {
				argv = []string{program}
				for _, limit := range upstreamLimits[s.name] {
					argv = append(argv, "--kvstore-opt="+limit)
				}
			}
			argv = append(argv, "--kvstoremeshes="+strconv.Itoa(config.KVStoreMeshes), "--differences="+differences)
			argv = append(argv, "--source="+config.Mesh.Cluster(0).Name)
			figures, info, err := b.rollout(ctx, argv, config.KVStoreMeshes, fmt.Sprintf("%s-%d", s.name, n+1))
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Sources = info
			report.Rounds = append(report.Rounds, RolloutRound{Subject: s.name, RolloutFigures: figures})
			b.stepDone()
		}
	}
	return report, nil
}

func writeDifferences(mesh Mesh, path string) error {
	out := rollout.Differences{}
	all, err := mesh.Cluster(0).differences()
	if err != nil {
		return err
	}
	for _, d := range all {
		if out[d.key] = 0; !d.deleted {
			out[d.key] = rollout.Hash(d.value)
		}
	}
	return out.Write(path)
}

// rollout measures one subject once: with a source of its own, and a replica of
// it with other revisions and content.
func (b *benchmark) rollout(ctx context.Context, argv []string, meshes int, name string) (f RolloutFigures, info SourceInfo, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Timeout, fmt.Errorf("not done within %s", b.config.Timeout))
	defer cancel()
	sources, err := b.startSourcesOf(ctx, b.config.Mesh, name+"-source")
	if err != nil {
		return f, info, err
	}
	defer sources.close()
	replicas, err := b.startSourcesOf(ctx, b.config.Mesh.Changed(), name+"-replica")
	if err != nil {
		return f, info, err
	}
	defer replicas.close()
	balancer, err := b.newBalancer(sources, name+"-balancer")
	if err != nil {
		return f, info, err
	}
	defer balancer.close()
	if err := b.connectable(ctx, balancer, meshes, sources, replicas); err != nil {
		return f, info, err
	}
	p, err := process.Start(name, b.dir, append(argv, "--clustermesh-config="+balancer.configs), nil)
	if err != nil {
		return f, info, err
	}
	defer p.Kill()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	output := filepath.Join(b.dir, name+".log")
	if _, err := waitTold(alive, output, "ready"); err != nil {
		return f, info, fmt.Errorf("waiting for all to be connected: %w\n%s", err, p.LogTail())
	}
	if f.Connected, err = follower.AskLists(ctx, b.socketOf(sources.of(0))); err != nil {
		return f, info, err
	}
	before, err := b.readRollout(alive, p, replicas)
	if err != nil {
		return f, info, err
	}
	began := time.Now()
	balancer.aim(replicas)
	if err := sources.pause(); err != nil { // as if the replica had died
		return f, info, err
	}
	times, err := waitTold(alive, output, "again")
	if err != nil {
		return f, info, fmt.Errorf("waiting for all to be in sync again: %w\n%s", err, p.LogTail())
	}
	after, err := b.readRollout(alive, p, replicas)
	if err != nil {
		return f, info, err
	}
	if len(times) != 3 {
		return f, info, fmt.Errorf("%d times were told, not 3", len(times))
	}
	memory, err := replicas.of(0).Memory()
	if err != nil {
		return f, info, err
	}
	f.FirstSeconds, f.MedianSeconds, f.Seconds = times[0].Sub(began).Seconds(), times[1].Sub(began).Seconds(), times[2].Sub(began).Seconds()
	f.SourceCPUSeconds = (after.source - before.source).Seconds()
	f.CPUSeconds = (after.subject - before.subject).Seconds()
	f.Again = after.lists
	f.SentBytes = after.lists.SentBytes - before.lists.SentBytes
	f.SourcePeakRSSBytes = memory.Peak
	return f, sources.info, p.Stop()
}

// connectable has the source, and its replica, be a cluster of another name and ID
// for each KVStoreMesh: in one process there can't be two connections to one.
func (b *benchmark) connectable(ctx context.Context, balancer *balancer, meshes int, sets ...*sources) error {
	only := b.config.Mesh.Cluster(0)
	url := "http://" + balancer.relays[0].Address()
	if err := os.Remove(filepath.Join(balancer.configs, only.Name)); err != nil {
		return fmt.Errorf("writing configurations: %w", err)
	}
	for i := range meshes {
		as := b.config.Mesh.Cluster(i + 1)
		if err := os.WriteFile(filepath.Join(balancer.configs, as.Name), etcdConfig(url), 0o600); err != nil {
			return fmt.Errorf("writing configurations: %w", err)
		}
		for _, set := range sets {
			if err := fillConfig(ctx, set.of(0).client, as, false); err != nil {
				return fmt.Errorf("writing the cluster config of %s: %w", as.Name, err)
			}
		}
	}
	return nil
}

// rolloutAccounts are the accounts of the replica and the subject at one moment.
type rolloutAccounts struct {
	source, subject time.Duration
	lists           follower.ListStatus
}

func (b *benchmark) readRollout(ctx context.Context, p *process.Process, replicas *sources) (at rolloutAccounts, err error) {
	if at.source, err = replicas.cpu(); err != nil {
		return at, err
	}
	if at.subject, err = p.CPU(); err != nil {
		return at, err
	}
	at.lists, err = follower.AskLists(ctx, b.socketOf(replicas.of(0)))
	return at, err
}

// waitTold waits until a program has written a line that begins with a word, and
// gives the times after it.
func waitTold(ctx context.Context, output, word string) ([]time.Time, error) {
	for {
		log, err := os.ReadFile(output)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(log)) {
			fields := strings.Fields(line)
			if !strings.HasSuffix(line, "\n") || len(fields) == 0 || fields[0] != word {
				continue
			}
			var times []time.Time
			for _, field := range fields[1:] {
				at, err := strconv.ParseInt(field, 10, 64)
				if err != nil {
					return nil, fmt.Errorf("reading %q: %w", line, err)
				}
				times = append(times, time.Unix(0, at))
			}
			return times, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lookAgain):
		}
	}
}

// socketOf is where an etcd tells what it has listed.
func (b *benchmark) socketOf(e *etcdProcess) string { return filepath.Join(b.dir, e.Name()+".sock") }
