// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	upstream "github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	cmk8s "github.com/cilium/cilium/clustermesh-apiserver/clustermesh/k8s"
	"github.com/cilium/cilium/clustermesh-apiserver/syncstate"
	clustercfgcell "github.com/cilium/cilium/pkg/clustermesh/clustercfg/cell"
	"github.com/cilium/cilium/pkg/hive"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	k8stestutils "github.com/cilium/cilium/pkg/k8s/testutils"
	"github.com/cilium/cilium/pkg/k8s/version"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/lock"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Fidelity: the same Kubernetes objects through upstream's exporter (the cells
// of its clustermesh-apiserver, over its in-memory kvstore) and through ours
// (over a real etcd) give the same keys and the same bytes. Where ours differ on
// purpose, the script that shows it has a file "differences", which says so key
// by key; nothing else may differ. They are:
//
//   - services and service exports of namespaces that aren't global stay at
//     home, as later versions of upstream have it (namespaces.txtar);
//   - an address that two pods claim for a while, or a pod that two slices do,
//     keeps its key until the last claim is gone (claims.txtar);
//   - a service export without a creation timestamp, which every reader refuses,
//     is not written (exports.txtar);
//   - an address that is none gives no key (claims.txtar).
//
// The values of canaries are times, and only compared as such.

// side is one of the two exporters.
type side struct {
	cmds map[string]script.Cmd
	// content is everything in its kvstore.
	content func(context.Context) (map[string]string, error)
	// k8s is its Kubernetes, and start starts it; scripts have commands for both.
	k8s   *fakeclient.FakeClientset
	start func(context.Context) error
}

// newSide makes a hive of the cells that both sides have and of others, with the
// given flags.
func newSide(t testing.TB, args []string, content func(context.Context) (map[string]string, error), cells ...cell.Cell) side {
	log := quiet(t)
	s := side{content: content}
	h := hive.New(append([]cell.Cell{
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(wire.DefaultMCSAPIConfig),
		fakeclient.FakeClientCell(),
		cell.Invoke(addServiceExportCRD),
		cell.Invoke(func(k8s *fakeclient.FakeClientset) { s.k8s = k8s }),
	}, cells...)...)
	s.start = func(ctx context.Context) error { return h.Start(log, ctx) }
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse(args))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	var err error
	s.cmds, err = h.ScriptCommands(log)
	require.NoError(t, err)
	return s
}

func newOurs(t testing.TB, args []string) side {
	server := startEtcd(t)
	client := newClient(t, server)
	args = append(slices.Clone(args), "--kvstore-opt="+etcd.OptAddress+"="+server.URL())
	content := func(ctx context.Context) (map[string]string, error) {
		resp, err := client.Etcd().Get(ctx, "cilium/", clientv3.WithPrefix())
		if err != nil {
			return nil, err
		}
		content := map[string]string{}
		for _, kv := range resp.Kvs {
			content[string(kv.Key)] = string(kv.Value)
		}
		return content, nil
	}
	s := newSide(t, args, content, state.Cell, kubernetes.Cell, etcd.Cell, export.Cell)
	maps.Insert(s.cmds, maps.All(etcd.ScriptCommands(client)))
	return s
}

func newUpstream(t testing.TB, args []string) side {
	version.Force(k8stestutils.DefaultVersion)
	log := quiet(t)
	var client kvstore.Client
	content := func(ctx context.Context) (map[string]string, error) {
		pairs, err := client.ListPrefix(ctx, "cilium/")
		if err != nil {
			return nil, err
		}
		content := map[string]string{}
		for key, value := range pairs {
			content[key] = string(value.Data)
		}
		return content, nil
	}
	return newSide(t, args, content,
		cmk8s.ResourcesCell,
		cell.Provide(
			func(db *statedb.DB) kvstore.Client {
				client = kvstore.NewInMemoryClient(db, "__local__")
				return client
			},
			func() store.Factory { return store.NewFactory(log, store.MetricsProvider()) },
			func() syncstate.SyncState {
				return syncstate.SyncState{StoppableWaitGroup: lock.NewStoppableWaitGroup()}
			},
		),
		clustercfgcell.WithSyncedCanaries(true),
		clustercfgcell.Cell,
		upstream.Synchronization,
	)
}

// addServiceExportCRD has the fake clientset say that ServiceExports can be
// watched: upstream asks before it does. Its object tracker doesn't know CRDs.
func addServiceExportCRD(clientset *fakeclient.FakeClientset) {
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "serviceexports.multicluster.x-k8s.io"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1alpha1"}},
		},
	}
	clientset.APIExtFakeClientset.PrependReactor("get", "customresourcedefinitions",
		func(k8stesting.Action) (bool, runtime.Object, error) { return true, crd, nil })
}

// pair is upstream's exporter and ours on the same objects.
type pair struct{ theirs, ours side }

func newPair(t testing.TB, args []string) *pair {
	return &pair{theirs: newUpstream(t, args), ours: newOurs(t, args)}
}

// both runs a command on both sides.
func (p *pair) both(name string) script.Cmd {
	theirs, ours := p.theirs.cmds[name], p.ours.cmds[name]
	return script.Command(*ours.Usage(), func(s *script.State, args ...string) (script.WaitFunc, error) {
		for _, cmd := range []script.Cmd{theirs, ours} {
			wait, err := cmd.Run(s, args...)
			if err == nil && wait != nil {
				_, _, err = wait(s)
			}
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
}

// commands are: hive/start and k8s/*, which run on both sides; kvstore/*, which
// look at ours; and compare.
func (p *pair) commands() map[string]script.Cmd {
	cmds := script.DefaultCmds()
	for _, name := range []string{"hive/start", "k8s/add", "k8s/update", "k8s/delete"} {
		cmds[name] = p.both(name)
	}
	for name, cmd := range p.ours.cmds {
		if strings.HasPrefix(name, "kvstore/") {
			cmds[name] = cmd
		}
	}
	cmds["compare"] = p.compare()
	return cmds
}

// compare fails unless both sides hold the same, but for the differences that a
// file lists: a line for each, "only-ours KEY" or "only-theirs KEY".
func (p *pair) compare() script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "compare the kvstores of both sides", Args: "[differences-file]"},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			wanted := map[string]struct{}{}
			if len(args) > 0 {
				file, err := os.Open(s.Path(args[0]))
				if err != nil {
					return nil, err
				}
				defer file.Close()
				for lines := bufio.NewScanner(file); lines.Scan(); {
					if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
						wanted[line] = struct{}{}
					}
				}
			}
			ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
			defer cancel()
			found, err := p.differences(ctx)
			if err != nil {
				return nil, err
			}
			var wrong []string
			for line, detail := range found {
				if _, ok := wanted[line]; !ok {
					wrong = append(wrong, line+detail)
				}
			}
			for line := range wanted {
				if _, ok := found[line]; !ok {
					wrong = append(wrong, "no longer "+line)
				}
			}
			if len(wrong) > 0 {
				slices.Sort(wrong)
				return nil, fmt.Errorf("upstream and ours differ:\n%s", strings.Join(wrong, "\n"))
			}
			return nil, nil
		},
	)
}

// differences are the lines of a file of differences, each with details; a key
// whose value differs is "differs KEY".
func (p *pair) differences(ctx context.Context) (map[string]string, error) {
	theirs, err := p.theirs.content(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing upstream's: %w", err)
	}
	ours, err := p.ours.content(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing ours: %w", err)
	}
	found := map[string]string{}
	for key, value := range theirs {
		mine, ok := ours[key]
		switch {
		case !ok:
			found["only-theirs "+key] = ": " + value
		case strings.HasPrefix(key, wire.SyncedRoot):
			for _, text := range []string{value, mine} {
				if _, err := time.Parse(time.RFC3339, text); err != nil {
					found["differs "+key] = ": " + err.Error()
				}
			}
		case mine != value:
			found["differs "+key] = "\n  upstream " + value + "\n  ours     " + mine
		}
	}
	for key, value := range ours {
		if _, ok := theirs[key]; !ok {
			found["only-ours "+key] = ": " + value
		}
	}
	return found, nil
}

// TestFidelity runs the scripts of testdata/fidelity on both sides.
func TestFidelity(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	setup := func(t testing.TB, args []string) *script.Engine {
		return &script.Engine{Cmds: newPair(t, args).commands(), RetryInterval: 10 * time.Millisecond, MaxRetryInterval: 200 * time.Millisecond}
	}
	scripttest.Test(t, ctx, setup, nil, "testdata/fidelity/*.txtar")
}
