// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/cilium/clustermesh-apiserver/health"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// TestMain makes the test's program the one that is measured as well: started
// with the name of a part, it is that part.
func TestMain(m *testing.M) {
	parts := map[string]cell.Cell{"etcd": cells.Etcd, "kvstoremesh": kvStoreMesh, "agent": cells.Agent, "clustermesh": cells.Exporter, "incluster-cache": cells.InClusterCache}
	tools := map[string]func(args []string){
		"follow":  func(args []string) { runPart(follow, args) },
		"readers": runReaders, "meshes": runMeshes, "etcd": runCounted, "agents": runAgents,
	}
	if len(os.Args) > 2 && os.Args[1] == "bench" && tools[os.Args[2]] != nil {
		tools[os.Args[2]](os.Args[3:])
		return
	}
	if filepath.Base(os.Args[0]) == rolloutProgram {
		runMeshes(os.Args[1:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "grpc-proxy" {
		etcdmain.Main(os.Args)
		return
	}
	if len(os.Args) > 1 && parts[os.Args[1]] != nil {
		runPart(parts[os.Args[1]], os.Args[2:])
		return
	}
	// They wait for other processes more than they work themselves.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// runAgents is "waggle bench agents".
func runAgents(args []string) {
	var config follower.AgentsConfig
	runTool(args, config.Register, func(ctx context.Context, log *slog.Logger) error {
		return follower.RunAgents(ctx, log, config)
	})
}

// runReaders is "waggle bench readers".
func runReaders(args []string) {
	var config follower.ReadersConfig
	runTool(args, config.Register, func(ctx context.Context, log *slog.Logger) error {
		return follower.RunReaders(ctx, log, config)
	})
}

// runMeshes is "waggle bench meshes".
func runMeshes(args []string) {
	var config follower.MeshesConfig
	runTool(args, config.Register, func(ctx context.Context, log *slog.Logger) error {
		return follower.RunMeshes(ctx, log, config, os.Stdout)
	})
}

// runCounted is "waggle bench etcd".
func runCounted(args []string) {
	var config follower.CountedConfig
	runTool(args, config.Register, func(ctx context.Context, _ *slog.Logger) error {
		return follower.RunCounted(ctx, config)
	})
}

func runTool(args []string, register func(*pflag.FlagSet), run func(context.Context, *slog.Logger) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true // of what upstream has
	register(flags)
	err := flags.Parse(args)
	if err == nil {
		err = run(ctx, log)
	}
	if err != nil {
		log.Error("Failed", "error", err)
		os.Exit(1)
	}
}

// kvStoreMesh is "waggle kvstoremesh" with its /readyz.
var kvStoreMesh = cell.Group(
	cells.KVStoreMesh, health.HealthAPIServerCell,
	cell.Provide(func(readiness *kvstoremesh.Readiness) []health.EndpointFunc {
		return []health.EndpointFunc{{Path: "/readyz", HandlerFunc: func(w http.ResponseWriter, _ *http.Request) {
			select {
			case <-readiness.Ready():
			default:
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}}}
	}),
)

// follow is "waggle bench follow".
var follow = cell.Group(cells.Agent, follower.Cell)

func runPart(part cell.Cell, args []string) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	h := hive.New(part)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true // of what waggle has beside the hives
	h.RegisterFlags(flags)
	err := flags.Parse(args)
	if err == nil {
		err = h.Run(log)
	}
	if err != nil {
		log.Error("Failed", "error", err)
		os.Exit(1)
	}
}

// TestKVStoreMesh measures small meshes in both layouts, and checks that the
// figures agree with each other. It says nothing about speed.
func TestKVStoreMesh(t *testing.T) {
	mesh := Mesh{Clusters: 2, Endpoints: 60, Nodes: 3, Identities: 7, Services: 4, Seed: 5}
	for _, tc := range []struct {
		layout Layout
		want   SourceInfo
		rounds int
	}{
		{LayoutAuto, SourceInfo{Layout: LayoutState, Etcds: 2}, 2},
		{LayoutCache, SourceInfo{Layout: LayoutCache, Etcds: 1}, 1},
	} {
		t.Run(string(tc.layout), func(t *testing.T) {
			var doing []string
			report, err := KVStoreMesh(t.Context(), Config{
				Mesh: mesh, Layout: tc.layout, CacheEtcds: 1, Rounds: tc.rounds, Timeout: time.Minute, Program: os.Args[0],
				Log: hivetest.Logger(t), Progress: func(s string) { doing = append(doing, s) },
			})
			require.NoError(t, err)
			require.NotEmpty(t, doing)
			require.Equal(t, tc.want.Layout, report.Sources.Layout)
			require.Equal(t, tc.want.Etcds, report.Sources.Etcds)
			require.Equal(t, mesh.Keys(), report.Sources.Keys)
			require.Positive(t, report.Sources.ValueBytes)
			require.Equal(t, []string{"waggle"}, report.Subjects())
			require.Len(t, report.Rounds, tc.rounds)
			for _, round := range report.Rounds {
				require.Equal(t, mesh.Keys(), round.Keys)
				require.Positive(t, round.ReadySeconds)
				require.Positive(t, round.CPUSeconds)
				require.Positive(t, round.EtcdCPUSeconds)
				require.Positive(t, round.SourceCPUSeconds)
				require.GreaterOrEqual(t, round.PeakRSSBytes, round.AnonRSSBytes)
				require.Positive(t, round.AnonRSSBytes)
				require.Positive(t, round.EtcdPeakRSSBytes)
				require.Positive(t, round.LifetimeCPUSeconds)
			}
		})
	}
}

// TestPeers measures peers whose program is the test's own: it is told their
// flags, and is found beside the program of waggle.
func TestPeers(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), upstreamProgram)
	require.NoError(t, os.Symlink(os.Args[0], program))
	config := Config{
		Mesh: Mesh{Clusters: 1, Endpoints: 20, Nodes: 1, Identities: 2}, Layout: LayoutAuto, Rounds: 2, Timeout: time.Minute,
		Program: os.Args[0], Peers: []string{Upstream, UpstreamShipped}, PeerProgram: program, Log: hivetest.Logger(t),
	}
	report, err := KVStoreMesh(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, []string{Waggle, Upstream, UpstreamShipped}, report.Subjects())
	require.Len(t, report.Rounds, 6)
	require.Equal(t, "etcd.qps=100 etcd.bootstrapQps=10000 etcd.maxInflight=10", report.Allowed[UpstreamShipped])
	for _, peer := range report.rounds().peers() {
		for name, spread := range report.Ratios(peer) {
			require.Positive(t, spread.Min, name)
			require.LessOrEqual(t, spread.Min, spread.Median, name)
			require.LessOrEqual(t, spread.Median, spread.Max, name)
		}
	}
}

func TestPeersAreRefused(t *testing.T) {
	program := filepath.Join(t.TempDir(), "waggle")
	for want, config := range map[string]Config{
		"make bin/upstream-clustermesh-apiserver": {Peers: []string{Upstream}, Program: program},
		`peer "mirror": must be one`:              {Peers: []string{Mirror}, Program: program},
		`peer "downstream": must be one`:          {Peers: []string{"downstream"}, PeerProgram: os.Args[0]},
		`peer "upstream": must be one`:            {Peers: []string{Upstream, Upstream}, PeerProgram: os.Args[0]},
	} {
		_, err := config.subjects()
		require.ErrorContains(t, err, want)
	}
}

// TestMirror measures etcd's mirror maker: it copies everything, at a restart as
// well, and isn't switched.
func TestMirror(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), mirrorProgram)
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./peer-mirror").CombinedOutput()
	require.NoError(t, err, string(out))
	mesh := Mesh{Clusters: 2, Endpoints: 20, Nodes: 1, Identities: 2}
	config := Config{
		Mesh: mesh, Layout: LayoutAuto, CacheEtcds: 1, Rounds: 1, Timeout: time.Minute,
		Program: os.Args[0], Peers: []string{Mirror}, MirrorProgram: program, Log: hivetest.Logger(t), Scenarios: Scenarios,
	}
	for _, layout := range []Layout{LayoutState, LayoutCache} {
		config.Layout = layout
		report, err := KVStoreMesh(t.Context(), config)
		require.NoError(t, err)
		require.Equal(t, []string{Waggle, Mirror}, report.Subjects())
		f := report.Median(Mirror)
		require.Equal(t, mesh.Keys(), f.Keys)
		require.Zero(t, f.Phases.Canary)
		require.Equal(t, Writes{Commits: mesh.Keys(), Puts: mesh.Keys()}, f.Restart.Writes)
		require.Nil(t, f.Switch)
		require.NotContains(t, report.Ratios(Mirror), "switch_cpu")
		require.Positive(t, report.Ratios(Mirror)["restart_cpu"].Min)
	}
	config.Mesh.Clusters = 21
	_, err = KVStoreMesh(t.Context(), config)
	require.ErrorContains(t, err, "up to 20 clusters, not 21")
}

// TestRatios divides what belongs together, whatever the order of the times is.
func TestRatios(t *testing.T) {
	report := &Report{Head: Head{Benchmark: "kvstoremesh", Allowed: map[string]string{Upstream: "everything"}}}
	for _, seconds := range [][2]float64{{1, 4}, {2, 4}, {1, 3}} {
		report.Rounds = append(report.Rounds,
			Round{Subject: Waggle, Figures: Figures{ReadySeconds: seconds[0], CPUSeconds: 1}},
			Round{Subject: Upstream, Figures: Figures{ReadySeconds: seconds[1], CPUSeconds: 5}})
	}
	require.Equal(t, Spread{Min: 2, Median: 3, Max: 4}, report.Ratios(Upstream)["ready"])
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read struct {
		Ratio   map[string]float64
		Ratios  map[string]map[string]Spread
		Allowed map[string]string
	}
	require.NoError(t, json.Unmarshal(raw, &read))
	require.EqualValues(t, 3, read.Ratio["ready"])
	require.EqualValues(t, 5, read.Ratio["cpu"])
	require.Contains(t, read.Ratio, "etcd_cpu")
	require.Contains(t, read.Ratio, "rss")
	require.Equal(t, Spread{5, 5, 5}, read.Ratios[Upstream]["cpu"])
	require.Equal(t, "everything", read.Allowed[Upstream])

	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `(?s)upstream: everything.*upstream ÷ waggle.*ready +2\.00 +3\.00 +4\.00`, text.String())
}

// TestKVStoreMeshFails shows what is said when the program can't do the job.
func TestKVStoreMeshFails(t *testing.T) {
	config := Config{Mesh: Mesh{Clusters: 1, Nodes: 1, Identities: 1}, Layout: LayoutAuto, Rounds: 1, Timeout: time.Minute, Log: hivetest.Logger(t)}

	config.Program = "/nonexistent"
	_, err := KVStoreMesh(t.Context(), config)
	require.ErrorContains(t, err, "starting source-etcd-001")

	// One that can be an etcd, and nothing else.
	config.Program = filepath.Join(t.TempDir(), "program")
	script := "#!/bin/sh\n[ $1 = etcd ] && exec " + os.Args[0] + ` "$@"` + "\necho no bees; exit 7\n"
	require.NoError(t, os.WriteFile(config.Program, []byte(script), 0o700))
	_, err = KVStoreMesh(t.Context(), config)
	require.ErrorContains(t, err, "round 1 of waggle: waiting for it to be ready: waggle-1 ended: exit status 7")
	require.ErrorContains(t, err, "no bees")

	config.Mesh = Mesh{}
	_, err = KVStoreMesh(t.Context(), config)
	require.Error(t, err)
}

func TestReport(t *testing.T) {
	report := &Report{Head: Head{Benchmark: "kvstoremesh", Mesh: DefaultMesh}}
	for _, seconds := range []float64{3, 1, 2} {
		report.Rounds = append(report.Rounds, Round{Subject: "waggle", Figures: Figures{Keys: 10, ReadySeconds: seconds, PeakRSSBytes: 1 << 20}})
	}
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read struct {
		Benchmark  string
		Parameters Mesh
		Waggle     map[string]float64
		Rounds     []map[string]any
	}
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Equal(t, "kvstoremesh", read.Benchmark)
	require.Equal(t, DefaultMesh, read.Parameters)
	require.EqualValues(t, 2, read.Waggle["ready_seconds"])
	for _, name := range []string{"keys", "ready_seconds", "cpu_seconds", "etcd_cpu_seconds", "peak_rss_bytes"} {
		require.Contains(t, read.Waggle, name)
	}
	require.Len(t, read.Rounds, 3)
	require.Equal(t, "waggle", read.Rounds[0]["subject"])
	require.EqualValues(t, 3, read.Rounds[0]["ready_seconds"])

	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `ready +1\.000 s +2\.000 s +3\.000 s`, text.String())
}

func TestCompare(t *testing.T) {
	want := map[string]digest{"a/": {1, 10}, "b/": {2, 20}}
	require.NoError(t, compare(want, map[string]digest{"b/": {2, 20}, "a/": {1, 10}}))
	require.ErrorContains(t, compare(want, map[string]digest{"a/": {1, 10}}), "b/ has 0 entries")
	require.ErrorContains(t, compare(want, map[string]digest{"a/": {1, 11}, "b/": {2, 20}}), "a/ has 1 entries")
	require.ErrorContains(t, compare(want, map[string]digest{"a/": {1, 10}, "b/": {2, 20}, "": {1, 1}}), "nobody sent")
}
