// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var debug = flag.Bool("debug", false, "Enable debug logging")

// startEtcd starts an embedded etcd for the time of the test.
func startEtcd(t testing.TB) *etcd.Server {
	t.Helper()
	server, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server
}

// newClient connects to an etcd for the time of the test.
func newClient(t testing.TB, server *etcd.Server) *etcd.Client {
	t.Helper()
	client, err := etcd.NewClient(quiet(t), etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, client.Close()) })
	return client
}

// quiet is the test's log from warnings on, or all of it with -debug.
func quiet(t testing.TB) *slog.Logger {
	level := slog.LevelWarn
	if *debug {
		level = slog.LevelDebug
	}
	return hivetest.Logger(t, hivetest.LogLevel(level))
}

// newHive exports what upstream's fake clientset holds, as a clustermesh
// apiserver does.
func newHive(cells ...cell.Cell) *hive.Hive {
	return hive.New(append([]cell.Cell{
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(wire.DefaultMCSAPIConfig),
		fakeclient.FakeClientCell(),
		state.Cell,
		kubernetes.Cell,
		cell.Provide(func(policy filter.WorkloadPolicy, config export.Config) kubernetes.PodMetadata {
			return kubernetes.PodMetadata(policy.ReadsPods(config.ClusterRegion))
		}),
		etcd.Cell,
		export.Cell,
		export.HeartbeatCell,
	}, cells...)...)
}

// setup makes the engine of a script: a hive, with the script's flags, and an
// etcd of its own.
func setup(t testing.TB, args []string) *script.Engine { return setupWith(t, args) }

func setupWith(t testing.TB, args []string, cells ...cell.Cell) *script.Engine {
	log := quiet(t)
	server := startEtcd(t)
	client := newClient(t, server)

	h := newHive(cells...)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	args = append(args, "--kvstore-opt="+etcd.OptAddress+"="+server.URL())
	require.NoError(t, flags.Parse(args), "flags of the script")
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })

	cmds, err := h.ScriptCommands(log)
	require.NoError(t, err)
	maps.Insert(cmds, maps.All(script.DefaultCmds()))
	maps.Insert(cmds, maps.All(etcd.ScriptCommands(client)))
	cmds["kvstore/revisions"] = revisionsCommand(client)
	return &script.Engine{Cmds: cmds, RetryInterval: 10 * time.Millisecond, MaxRetryInterval: 200 * time.Millisecond}
}

// revisionsCommand writes which revisions made and last changed each key: what is the
// same twice wasn't written in between.
func revisionsCommand(client *etcd.Client) script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "list the revisions of the keys below a prefix", Args: "prefix output-file"},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, script.ErrUsage
			}
			resp, err := client.Etcd().Get(s.Context(), args[0], clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if err != nil {
				return nil, fmt.Errorf("listing %q: %w", args[0], err)
			}
			var out strings.Builder
			for _, kv := range resp.Kvs {
				fmt.Fprintf(&out, "%s %d %d %d\n", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version)
			}
			return nil, os.WriteFile(s.Path(args[1]), []byte(out.String()), 0o600)
		},
	)
}

// TestMissingRegionIsSaidOnce: an exporter without a region says at its start what that
// means in its mode; one with a region doesn't.
func TestMissingRegionIsSaidOnce(t *testing.T) {
	const all, optIn = "Without a region pods aren't asked how far", "Without a region pods are asked whether"
	for flags, want := range map[string][2]int{
		"": {1, 0}, "--clustermesh-sync-mode=opt-in": {0, 1},
		"--cluster-region=eu": {0, 0}, "--cluster-region=eu --clustermesh-sync-mode=opt-in": {0, 0},
	} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		h := newHive()
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		h.RegisterFlags(set)
		require.NoError(t, set.Parse(append(strings.Fields(flags), "--kvstore-opt="+etcd.OptAddress+"="+startEtcd(t).URL())))
		require.NoError(t, h.Populate(log))
		require.NotContains(t, out.String(), "Without a region", "it hasn't begun")
		require.NoError(t, h.Start(log, t.Context()))
		require.NoError(t, h.Stop(log, context.Background()))
		require.Equal(t, want[0], strings.Count(out.String(), all), flags)
		require.Equal(t, want[1], strings.Count(out.String(), optIn), flags)
	}
}

func runScripts(t *testing.T, setup func(testing.TB, []string) *script.Engine, pattern string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	scripttest.Test(t, ctx, setup, nil, pattern)
}

// TestScript runs the scripts of testdata: objects in, keys out.
func TestScript(t *testing.T) { runScripts(t, setup, "testdata/*.txtar") }

// TestUpstreamScripts runs the scripts that upstream tests its exporter with,
// as they lie in its module: the same objects, flags and expected bytes.
func TestUpstreamScripts(t *testing.T) {
	runScripts(t, setup, filepath.Join(upstreamDir(t), "clustermesh-apiserver", "clustermesh", "testdata", "*.txtar"))
}

// TestUpstreamServiceScript runs the one of its service export. It knows no
// namespaces, and ours exports no service of one that doesn't exist.
func TestUpstreamServiceScript(t *testing.T) {
	withNamespace := func(t testing.TB, args []string) *script.Engine {
		return setupWith(t, args, cell.Invoke(func(k8s *fakeclient.FakeClientset) error {
			_, err := k8s.Slim().CoreV1().Namespaces().Create(context.Background(),
				&slim_corev1.Namespace{ObjectMeta: slim_metav1.ObjectMeta{Name: "test"}}, metav1.CreateOptions{})
			return err
		}))
	}
	runScripts(t, withNamespace, filepath.Join(upstreamDir(t), "operator", "watchers", "testdata", "servicesync.txtar"))
}

// upstreamDir is where upstream's module lies.
func upstreamDir(t testing.TB) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/cilium").Output()
	if err != nil {
		t.Skipf("finding upstream's module: %v", err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		t.Skip("upstream's module isn't in the module cache (a vendored build)")
	}
	return dir
}
