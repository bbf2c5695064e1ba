// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/hive/health/types"
	basehive "github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/shell"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

// running is a program that runs, as its operator sees it.
type running struct {
	socket, metrics, ready string
	// health are the rows of what its parts say of themselves.
	health func() []types.Status
}

// startProgram starts one of the programs as it is, in this process.
func startProgram(t *testing.T, dir, name string, args ...string) running {
	t.Helper()
	p := programs[slices.IndexFunc(programs, func(p program) bool { return p.name == name })]
	r := running{metrics: freeAddress(t)}
	_, port, err := net.SplitHostPort(r.metrics)
	require.NoError(t, err)
	r.socket = filepath.Join(dir, port+".sock")
	_, port, err = net.SplitHostPort(freeAddress(t))
	require.NoError(t, err)
	r.ready = "http://127.0.0.1:" + port + "/readyz"
	h := p.hive(cell.Invoke(func(db *statedb.DB, health statedb.Table[types.Status]) {
		r.health = func() []types.Status { return statedb.Collect(health.All(db.ReadTxn())) }
	}))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse(append(slices.Clone(args),
		"--shell-sock-path="+r.socket, "--prometheus-serve-addr="+r.metrics, "--health-port="+port)))
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	return r
}

// waggle runs a command line and gives what it prints.
func waggle(args ...string) (string, error) {
	var out bytes.Buffer
	root := newRootCmd()
	root.SetOut(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

// until waits until a command line prints all that is wanted.
func until(t *testing.T, want []string, args ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle(args...)
		assert.NoError(collect, err, "%s", out)
		for _, line := range want {
			assert.Contains(collect, out, line)
		}
	}, 2*time.Minute, 50*time.Millisecond)
}

func (r running) untilMetrics(t *testing.T, want ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		resp, err := http.Get("http://" + r.metrics + "/metrics")
		if !assert.NoError(collect, err) {
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		assert.NoError(collect, err)
		for _, line := range want {
			assert.Contains(collect, string(body), line+"\n")
		}
	}, 2*time.Minute, 50*time.Millisecond)
}

func startTestEtcd(t *testing.T) string {
	server, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server.URL()
}

const filterManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {clustermesh.cilium.io/global: "true"}}
---
apiVersion: v1
kind: Namespace
metadata: {name: lab, annotations: {clustermesh.cilium.io/global: "no"}}
---
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: "65636"}
security-labels: {"k8s:app": cart, "k8s:io.cilium.k8s.policy.cluster": amber, "k8s:io.kubernetes.pod.namespace": shop}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: cart-0, namespace: shop}
status:
  identity: {id: 65636}
  networking: {addressing: [{ipv4: 10.1.0.10, ipv6: "fd00::10"}], node: 172.16.0.1}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: cart-1, namespace: shop}
status:
  identity: {id: 65636}
  networking: {addressing: [{ipv4: 10.1.0.11}], node: 172.16.0.1}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: probe, namespace: lab}
status:
  identity: {id: 65637}
  networking: {addressing: [{ipv4: 10.1.0.20}], node: 172.16.0.1}
`

// filterPods are the pods, with what cart-0 says.
func filterPods(cart string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, annotations: {%s}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {clustermesh.cilium.io/sync: "yes"}}
---
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, annotations: {clustermesh.cilium.io/sync: "true"}}
---
apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: lab, annotations: {clustermesh.cilium.io/sync: "true"}}
`, cart)
}

// TestFilters follows a pod through the settings that it may have, from its cluster's
// exporter to the KVStoreMeshes of a cluster in another region and of one in the same,
// with what an operator has to look at it.
func TestFilters(t *testing.T) {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "filter-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	manifests := filepath.Join(dir, "amber")
	require.NoError(t, os.Mkdir(manifests, 0o755))
	write := func(file, text string) {
		t.Helper()
		// As a whole: half a file would be other pods.
		next := filepath.Join(dir, file+".next")
		require.NoError(t, os.WriteFile(next, []byte(text), 0o644))
		require.NoError(t, os.Rename(next, filepath.Join(manifests, file)))
	}
	write("cluster.yaml", filterManifests)
	write("pods.yaml", filterPods(`clustermesh.cilium.io/sync: "true", clustermesh.cilium.io/sync-scope: regional`))

	source := startTestEtcd(t)
	exporter := startProgram(t, dir, "clustermesh", "--cluster-name=amber", "--cluster-id=1", "--cluster-region=eu-west",
		"--clustermesh-sync-mode=opt-in", "--k8s-manifests="+manifests, "--kvstore-opt=etcd.address="+source)
	configs := filepath.Join(dir, "clusters")
	require.NoError(t, os.Mkdir(configs, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(configs, "amber"), []byte("endpoints:\n- "+source+"\n"), 0o644))
	reader := func(name, id, region string) running {
		return startProgram(t, dir, "kvstoremesh", "--cluster-name="+name, "--cluster-id="+id, "--cluster-region="+region,
			"--clustermesh-config="+configs, "--kvstore-opt=etcd.address="+startTestEtcd(t))
	}
	basil, coral := reader("basil", "2", "us-east"), reader("coral", "3", "eu-west")
	sockets := "--shell-sock-path=" + strings.Join([]string{exporter.socket, basil.socket, coral.socket}, ",")

	until(t, []string{
		"pod             annotation clustermesh.cilium.io/sync=true",
		"scope           regional: annotation clustermesh.cilium.io/sync-scope; this cluster is in region eu-west",
		"10.1.0.10       pushed cilium/state/ip/v1/default/10.1.0.10\n",
		"fd00::10        pushed cilium/state/ip/v1/default/fd00::10\n",
		"identity 65636  pushed cilium/state/identities/v1/id/65636: 2 pushed endpoints have it\n",
		"=> basil (us-east)  skipped by region: its scope is regional: for region eu-west, not us-east\n",
		"=> coral (eu-west)  synced: its scope is regional, and both are in region eu-west\n",
	}, "filter", "explain", sockets, "amber/shop/cart-0")
	until(t, []string{
		`counts as absent: label clustermesh.cilium.io/sync="yes": must be true or false`,
		"10.1.0.11       on-demand cilium/state/ondemand/ip/v1/default/10.1.0.11\n",
		"=> basil (us-east)  not pushed", "=> coral (eu-west)  not pushed",
	}, "filter", "explain", sockets, "amber/shop/cart-1")
	until(t, []string{
		`lab isn't global: annotation clustermesh.cilium.io/global="no", and only true is`,
		"which gets no pod out of a namespace", "10.1.0.20       kept\n",
	}, "filter", "explain", sockets, "amber/lab/probe")
	until(t, []string{"there is a pod, and no endpoint of it yet"}, "filter", "explain", sockets, "amber/shop/late")

	// A single process of these, or all.
	until(t, []string{
		"amber    opt-in     eu-west  endpoints       2       1          1           0\n",
		"amber    opt-in     eu-west  identities      1       0          0           0\n",
		"Malformed settings of pods in amber, which count as absent:\n  shop/cart-1: label clustermesh.cilium.io/sync=\"yes\"",
	}, "status", "--shell-sock-path="+exporter.socket)
	until(t, []string{"basil    us-east  amber   eu-west     0          2\n"}, "status", "--shell-sock-path="+basil.socket)
	exporter.untilMetrics(t, `waggle_export_entries{fate="pushed",resource="endpoints"} 2`,
		`waggle_export_entries{fate="on-demand",resource="endpoints"} 1`, `waggle_export_entries{fate="kept",resource="endpoints"} 1`,
		"waggle_export_malformed_settings 1")
	basil.untilMetrics(t, `waggle_kvstoremesh_skipped_entries{resource="endpoints",target_cluster="amber"} 2`)
	coral.untilMetrics(t, `waggle_kvstoremesh_skipped_entries{resource="endpoints",target_cluster="amber"} 0`)

	// For all regions.
	write("pods.yaml", filterPods(`clustermesh.cilium.io/sync: "true"`))
	until(t, []string{"=> basil (us-east)  synced: its scope is global\n", "=> coral (eu-west)  synced"},
		"filter", "explain", sockets, "amber/shop/cart-0")
	basil.untilMetrics(t, `waggle_kvstoremesh_skipped_entries{resource="endpoints",target_cluster="amber"} 0`)

	// For nobody.
	write("pods.yaml", filterPods(`clustermesh.cilium.io/sync: "false"`))
	until(t, []string{
		"10.1.0.10       on-demand cilium/state/ondemand/ip/v1/default/10.1.0.10\n",
		"identity 65636  on-demand cilium/state/ondemand/identities/v1/id/65636: no pushed endpoint has it\n",
		"=> basil (us-east)  not pushed: the source doesn't push it\n",
	}, "filter", "explain", sockets, "amber/shop/cart-0")
	exporter.untilMetrics(t, `waggle_export_entries{fate="pushed",resource="endpoints"} 0`,
		`waggle_export_entries{fate="on-demand",resource="identities"} 1`)

	// As JSON, the same.
	out, err := waggle("filter", "explain", sockets, "-o", "json", "amber/shop/cart-0")
	require.NoError(t, err)
	var answer run.Explanation
	require.NoError(t, json.Unmarshal([]byte(out), &answer))
	require.Equal(t, "on-demand", answer.Source.Fate.String())
	require.Len(t, answer.Readers, 2)
	require.Len(t, answer.Readers[0].Arrivals, 2)
	require.Equal(t, run.OutcomeNotPushed, answer.Readers[0].Arrivals[0].Outcome)
	out, err = waggle("status", sockets, "-o", "json")
	require.NoError(t, err)
	var processes []run.Process
	require.NoError(t, json.Unmarshal([]byte(out), &processes))
	require.Len(t, processes, 3)
	require.Equal(t, 1, processes[0].Filters.Exporters[0].Malformed)
	require.Equal(t, "us-east", processes[1].Filters.KVStoreMeshes[0].Region)

	// What can't be told is said, by name, and is a failure.
	for _, tc := range []struct {
		problem string
		args    []string
	}{
		{`no exporter of a cluster "aster" is asked; there is amber`, []string{sockets, "aster/shop/cart-0"}},
		{`cluster amber has no namespace "shops"`, []string{sockets, "amber/shops/cart-0"}},
		{`no endpoint of a pod "cart-9" in namespace shop`, []string{sockets, "amber/shop/cart-9"}},
		{`"amber/cart-0": must be CLUSTER/NAMESPACE/POD`, []string{sockets, "amber/cart-0"}},
		{`"yaml" for "-o, --output" flag: must be text or json`, []string{sockets, "-o", "yaml", "amber/shop/cart-0"}},
		{"no mesh runs in", []string{"--run-dir=" + filepath.Join(dir, "none"), "amber/shop/cart-0"}},
		{"absent.sock can't tell about filters", []string{sockets + "," + filepath.Join(dir, "absent.sock"), "amber/shop/cart-0"}},
	} {
		_, err := waggle(append([]string{"filter", "explain"}, tc.args...)...)
		require.ErrorContains(t, err, tc.problem)
	}
	// As a mesh of "waggle run", of which one cluster's KVStoreMesh is away.
	place := func(name, etcd string, shells map[string]string) run.Place {
		return run.Place{Cluster: run.Cluster{Name: name}, Etcd: etcd, Shells: shells}
	}
	layout, err := json.Marshal(run.Layout{Dir: dir, Clusters: []run.Place{
		place("amber", source, map[string]string{"clustermesh": exporter.socket, "kvstoremesh": "none"}),
		place("basil", source, map[string]string{"clustermesh": "none", "kvstoremesh": basil.socket}),
		place("dill", source, map[string]string{"clustermesh": "none", "kvstoremesh": filepath.Join(dir, "absent.sock")}),
	}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mesh.json"), layout, 0o600))
	out, err = waggle("filter", "explain", "--run-dir="+dir, "amber/shop/cart-0")
	require.ErrorIs(t, err, run.ErrCantTell)
	require.EqualError(t, err, "can't tell what dill has: its KVStoreMesh: not running")
	require.Contains(t, out, "=> basil (us-east)  not pushed", "what is known is told all the same")
	require.Contains(t, out, "=> dill             unknown: its KVStoreMesh: not running")
	_, err = waggle("filter", "explain", "--run-dir="+dir, "aster/shop/cart-0")
	require.ErrorContains(t, err, `no exporter of a cluster "aster" is asked; there is amber, basil, dill`)
	_, err = waggle("filter", "explain", "--run-dir="+dir, "dill/shop/cart-0")
	require.ErrorContains(t, err, "dill's exporter: not running")

	out, err = waggle("status", "--run-dir="+dir, "-o", "json")
	require.ErrorIs(t, err, run.ErrUnhealthy, "some don't run")
	var report run.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Len(t, report.Remotes, 6)
	require.Len(t, report.Filters.Exporters, 1)
	require.Contains(t, report.Filters.Problems, "dill/kvstoremesh: not running")
	out, err = waggle("status", "--run-dir="+dir)
	require.ErrorIs(t, err, run.ErrUnhealthy)
	require.Regexp(t, `(?m)^amber +opt-in +eu-west +endpoints +0 +3 +1 +0$`, out)
	require.NotRegexp(t, `(?m)^amber +opt-in +eu-west +nodes`, out, "of which nothing is left out")
	out, err = waggle("status", "--run-dir="+dir, "--filters")
	require.ErrorIs(t, err, run.ErrUnhealthy)
	require.Regexp(t, `(?m)^amber +opt-in +eu-west +nodes +0 +0 +0 +0$`, out)

	agent := startProgram(t, dir, "agent", "--cluster-name=amber", "--cluster-id=1", "--ipcache-backend=memory",
		"--state-dir="+filepath.Join(dir, "state"), "--enable-k8s=false")
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		_, err := waggle("filter", "explain", sockets+","+agent.socket, "amber/shop/cart-0")
		assert.ErrorContains(collect, err, agent.socket+" can't tell about filters, which exporters and KVStoreMeshes do")
	}, time.Minute, 50*time.Millisecond)
}

// TestFilterExplainWithoutEtcd: an exporter whose etcd is away tells the rules, and that
// it doesn't know what is there.
func TestFilterExplainWithoutEtcd(t *testing.T) {
	dir, err := os.MkdirTemp("", "filter-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	manifests := filepath.Join(dir, "amber")
	require.NoError(t, os.Mkdir(manifests, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(manifests, "cluster.yaml"), []byte(filterManifests), 0o644))
	exporter := startProgram(t, dir, "clustermesh", "--cluster-name=amber", "--cluster-id=1",
		"--k8s-manifests="+manifests, "--kvstore-opt=etcd.address=http://"+freeAddress(t))
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle("filter", "explain", "--shell-sock-path="+exporter.socket, "amber/shop/cart-0")
		assert.ErrorIs(collect, err, run.ErrCantTell)
		assert.ErrorContains(collect, err, "what amber's etcd has")
		assert.Contains(collect, out, "every pod of a global namespace is pushed")
		assert.Contains(collect, out, "10.1.0.10       pushed cilium/state/ip/v1/default/10.1.0.10\n")
		assert.Contains(collect, out, "amber's exporter has not written everything yet")
	}, 2*time.Minute, 50*time.Millisecond)
}

// TestFilterExplainBeforeSync: no answer is better than a wrong one. What answers here
// stands for an exporter that waits for its API server, which can't be held there.
func TestFilterExplainBeforeSync(t *testing.T) {
	dir, err := os.MkdirTemp("", "filter-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	says := func(answer any) script.Cmd {
		return script.Command(script.CmdUsage{Flags: output.Flag}, func(s *script.State, _ ...string) (script.WaitFunc, error) {
			return output.Answer(s.Flags, answer, func(io.Writer) error { return nil })
		})
	}
	socket := filepath.Join(dir, "s.sock")
	h := hive.New(shell.ServerCell(socket), cell.Provide(func() basehive.ScriptCmdsOut {
		return basehive.NewScriptCmds(map[string]script.Cmd{
			"filter/status":  says(export.FilterStatus{Part: export.PartExporter, Cluster: "amber"}),
			"filter/explain": says(export.Explanation{Part: export.PartExporter, Cluster: "amber", PodKnown: true, Waits: []string{"workloads"}}),
		})
	}))
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle("filter", "explain", "--shell-sock-path="+socket, "amber/shop/cart-0")
		assert.EqualError(collect, err, "can't tell yet: amber's exporter has not read all of its cluster (workloads)")
		assert.Empty(collect, out)
	}, time.Minute, 50*time.Millisecond)
}
