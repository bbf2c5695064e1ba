// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// benchmark is one call of a benchmark: its directory and its network.
type benchmark struct {
	config    Config
	dir       string
	temporary bool
	network   *network
	// counted: etcds count what is listed, see follower.RunCounted.
	counted bool
	// done of so many steps are done.
	done, steps int
}

func newBenchmark(config Config) (*benchmark, error) {
	b := &benchmark{config: config, dir: config.Dir, network: newNetwork()}
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "waggle-bench-")
		if err != nil {
			return nil, fmt.Errorf("making a directory for the benchmark: %w", err)
		}
		b.dir, b.temporary = dir, true
	}
	return b, nil
}

// close removes a directory that was made by the benchmark; what can't be
// removed is left to whoever cleans up temporary files.
func (b *benchmark) close() {
	if b.temporary {
		_ = os.RemoveAll(b.dir)
	}
}

// head begins a report.
func (b *benchmark) head(name string, subjects []subject) (Head, error) {
	machine, err := thisMachine()
	if err != nil {
		return Head{}, err
	}
	head := Head{
		Benchmark: name, Began: time.Now().UTC(), Mesh: b.config.Mesh, Machine: machine, Build: thisBuild(),
		Allowed: map[string]string{},
	}
	for _, s := range subjects {
		head.Allowed[s.name] = s.allowed
	}
	return head, nil
}

// startLocal starts an empty local etcd, and gives what a subject finds. name is
// that of the subject's files.
func (b *benchmark) startLocal(ctx context.Context, name string, sources *sources) (*etcdProcess, environment, error) {
	local, err := b.startEtcd(ctx, name+"-etcd", b.network.url())
	if err != nil {
		return nil, environment{}, err
	}
	env := environment{
		mesh: b.config.Mesh, clusterMeshConfig: sources.configs, cached: sources.info.Layout == LayoutCache,
		localConfig: filepath.Join(b.dir, name+"-etcd.yaml"),
		address:     b.network.address(), socket: filepath.Join(b.dir, name+".sock"),
	}
	if err := os.WriteFile(env.localConfig, etcdConfig(local.url), 0o600); err != nil {
		local.close()
		return nil, environment{}, err
	}
	return local, env, nil
}

// writeConfigs makes a directory as --clustermesh-config wants it, in which the
// i-th cluster of the mesh has the etcd at url(i).
func writeConfigs(dir string, mesh Mesh, url func(i int) string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing the configurations of clusters: %w", err)
	}
	for i := range mesh.Clusters {
		if err := os.WriteFile(filepath.Join(dir, mesh.Cluster(i).Name), etcdConfig(url(i)), 0o600); err != nil {
			return fmt.Errorf("writing the configurations of clusters: %w", err)
		}
	}
	return nil
}

// etcdConfig is an etcd client's configuration file.
func etcdConfig(url string) []byte { return fmt.Appendf(nil, "endpoints:\n- %s\n", url) }

// expect says how many steps there will be.
func (b *benchmark) expect(steps int) {
	b.done, b.steps = -1, steps
	b.stepDone()
}

// stepDone says that one more step is done.
func (b *benchmark) stepDone() {
	if b.done++; b.config.Steps != nil {
		b.config.Steps(b.done, b.steps)
	}
}

func (b *benchmark) progress(format string, args ...any) {
	if b.config.Progress != nil {
		b.config.Progress(fmt.Sprintf(format, args...))
	}
}
