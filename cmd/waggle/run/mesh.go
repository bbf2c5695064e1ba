// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/kvstoremesh"
	"github.com/waggle-mesh/waggle/kvstoremesh/readthrough"
)

// mesh is the processes of all clusters.
type mesh struct {
	layout    Layout
	processes []*process
}

// agentFlags are what the options of the run say about its agents.
type agentFlags struct {
	backend  string // --ipcache-backend
	onDemand bool   // --enable-ondemand-resolution
}

// newMesh prepares the processes.
func newMesh(layout Layout, agents agentFlags, ended func(string, int, error), started func(string, int)) *mesh {
	m := &mesh{layout: layout}
	for _, part := range Parts { // all etcds first
		for _, place := range layout.Clusters {
			if !place.has(part) {
				continue
			}
			m.processes = append(m.processes, &process{
				name: place.Cluster.Name + "/" + part,
				args: layout.arguments(place, part, agents),
				// What a process that is killed leaves there goes with the run.
				env: []string{"TMPDIR=" + layout.Dir},
				log: place.Logs[part], ended: ended, started: started,
			})
		}
	}
	return m
}

// arguments is the command line of a part.
func (l Layout) arguments(p Place, part string, agents agentFlags) []string {
	args := []string{part, "--shell-sock-path=" + p.Shells[part], "--health-port=0"}
	if part == partEtcd {
		return append(args,
			"--listen-client-urls="+p.Etcd,
			"--data-dir="+filepath.Join(l.Dir, p.Cluster.Name, "etcd"))
	}
	args = append(args,
		"--cluster-name="+p.Cluster.Name,
		"--cluster-id="+strconv.Itoa(int(p.Cluster.ID)),
		"--max-connected-clusters="+strconv.Itoa(int(p.Cluster.MaxConnectedClusters)))
	switch part {
	case partExporter:
		return append(args,
			"--k8s-manifests="+p.Cluster.Manifests,
			"--enable-cilium-endpoint-slice="+strconv.FormatBool(p.Cluster.EndpointSlices),
			"--clustermesh-enable-mcs-api="+strconv.FormatBool(p.Cluster.MCSAPI),
			"--"+filter.FlagDefaultGlobalNamespace+"="+strconv.FormatBool(p.Cluster.Namespaces.DefaultGlobal),
			"--"+filter.FlagSyncMode+"="+string(p.Cluster.Workloads.Mode),
			"--"+export.FlagClusterRegion+"="+p.Cluster.Region,
			"--kvstore-opt=etcd.address="+p.Etcd)
	case partCache:
		return append(args,
			"--k8s-manifests="+p.Cluster.Manifests,
			"--enable-cilium-endpoint-slice="+strconv.FormatBool(p.Cluster.EndpointSlices),
			"--listen-client-urls="+p.Cache)
	case partKVStoreMesh:
		return append(args,
			"--clustermesh-config="+l.meshConfig(p, part),
			"--"+kvstoremesh.FlagClusterRegion+"="+p.Cluster.Region,
			"--"+readthrough.FlagListenAddress+"="+l.readThrough(p),
			"--kvstore-opt=etcd.address="+p.Etcd)
	default:
		if p.Cache != "" {
			args = append(args, "--datastore=etcd", "--kvstore-opt=etcd.address="+p.Cache)
		}
		return append(args,
			"--clustermesh-config="+l.meshConfig(p, part),
			// The default is a real agent's, whose snapshot isn't to be touched.
			"--state-dir="+filepath.Join(l.Dir, p.Cluster.Name, "state"),
			"--ipcache-backend="+agents.backend,
			"--enable-ondemand-resolution="+strconv.FormatBool(agents.onDemand),
			"--ondemand-etcd-config="+l.readThroughConfig(p),
			"--bpf-map-dir="+filepath.Join(l.pins(), p.Cluster.Name),
			"--bpf-ipcache-map-max=65536") // a trial's map; the default takes more kernel memory
	}
}

// run runs all processes until ctx ends, or one can't be started.
func (m *mesh) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range m.processes {
		group.Go(func() error {
			// A process dies with the thread that started it (Pdeathsig), so that
			// this one must not end before.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			return p.run(ctx)
		})
	}
	return group.Wait()
}

// pid is that of a part.
func (m *mesh) pid(cluster, part string) int {
	for _, p := range m.processes {
		if p.name == cluster+"/"+part {
			return p.PID()
		}
	}
	return 0
}

// removePins removes what the agents pinned of their maps.
func (m *mesh) removePins() error {
	return removePins(filepath.Join(ipcache.DefaultConfig.BPFRoot, m.layout.pins()))
}

// removePins removes a directory of pins. Whoever may not look there hasn't
// pinned anything there: the agents had this user's rights.
func removePins(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return fmt.Errorf("removing the pinned maps: %w", err)
}
