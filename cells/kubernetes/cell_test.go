// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/hive"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	k8stesting "k8s.io/client-go/testing"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// tables is what a test looks at.
type tables struct {
	cell.In

	DB         *statedb.DB
	Nodes      statedb.Table[*state.Node]
	Endpoints  statedb.Table[*state.Endpoint]
	Namespaces statedb.Table[*state.Namespace]
	Exports    statedb.Table[*state.ServiceExport]
}

// start starts a hive and stops it when the test ends.
func start(t testing.TB, h *hive.Hive, flags map[string]string) {
	t.Helper()
	for name, value := range flags {
		h.Viper().Set(name, value)
	}
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, context.Background()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
}

// eventually waits until check is true, looking again whenever table changes.
func eventually[T any](t testing.TB, db *statedb.DB, table statedb.Table[T], what string, check func(statedb.ReadTxn) bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		txn := db.ReadTxn()
		_, watch := table.AllWatch(txn)
		_, initialized := table.Initialized(txn)
		if check(txn) {
			return
		}
		select {
		case <-watch:
		case <-initialized:
		case <-deadline:
			t.Fatalf("waiting in vain for: %s", what)
		}
	}
}

func names[T any](txn statedb.ReadTxn, table statedb.Table[T], name func(T) string) []string {
	out := []string{}
	for row := range table.All(txn) {
		out = append(out, name(row))
	}
	slices.Sort(out)
	return out
}

func namespaceName(n *state.Namespace) string { return n.Name }

func TestWithoutSource(t *testing.T) {
	h := hive.New(
		cell.Config(wire.DefaultClusterInfo), cell.Config(mcsapitypes.DefaultMCSAPIConfig),
		fakeclient.FakeClientCell(), state.Cell,
		cell.Invoke(func(fake *fakeclient.FakeClientset) { fake.Disable() }),
		kubernetes.Cell,
	)
	log := hivetest.Logger(t)
	require.ErrorIs(t, h.Start(log, context.Background()), kubernetes.ErrNoSource)
	require.NoError(t, h.Stop(log, context.Background()))
}

func TestManifestsDirectoryMissing(t *testing.T) {
	for _, path := range []string{"missing", "file"} {
		t.Run(path, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
			h := newHive()
			h.Viper().Set("k8s-manifests", filepath.Join(dir, path))
			log := hivetest.Logger(t)
			require.ErrorContains(t, h.Start(log, context.Background()), filepath.Join(dir, path))
			require.NoError(t, h.Stop(log, context.Background()))
		})
	}
}

// withClient is the room on the clientset that programs use.
func withClient(cells ...cell.Cell) *hive.Hive {
	return hive.New(append([]cell.Cell{
		cell.Config(wire.DefaultClusterInfo), cell.Config(mcsapitypes.DefaultMCSAPIConfig),
		kubernetes.ClientCell, state.Cell, kubernetes.Cell,
	}, cells...)...)
}

func TestManifestsAndAPIServer(t *testing.T) {
	dir := t.TempDir()
	h := withClient()
	h.Viper().Set("k8s-manifests", dir)
	kubeconfig := filepath.Join(dir, "kubeconfig")
	writeFile(t, kubeconfig, "apiVersion: v1\nkind: Config\ncurrent-context: c\n"+
		"clusters: [{name: c, cluster: {server: \"https://127.0.0.1:1\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\n")
	h.Viper().Set("k8s-kubeconfig-path", kubeconfig)
	require.ErrorContains(t, h.Start(hivetest.Logger(t), context.Background()), kubernetes.ErrTwoSources.Error())
}

// TestManifestsInAPod: in a pod upstream's clientset finds the API server by
// itself; manifests go before it.
func TestManifestsInAPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "1")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "ns.yaml"), namespaceYAML("foo"))
	var (
		clientset client.Clientset
		tb        tables
	)
	h := withClient(cell.Invoke(func(c client.Clientset, in tables) { clientset, tb = c, in }))
	start(t, h, map[string]string{"k8s-manifests": dir})
	require.False(t, clientset.IsEnabled())
	eventually(t, tb.DB, tb.Namespaces, "the namespace of the manifest", func(txn statedb.ReadTxn) bool {
		return slices.Equal([]string{"foo"}, names(txn, tb.Namespaces, namespaceName))
	})
}

// TestCRDInstalledLater: a kind that the API server doesn't know yet is awaited;
// meanwhile its table isn't complete, unless the kind is an optional one.
func TestCRDInstalledLater(t *testing.T) {
	var (
		tb        tables
		fake      *fakeclient.FakeClientset
		installed atomic.Bool
	)
	h := newHive(cell.Invoke(func(in tables, f *fakeclient.FakeClientset) { tb, fake = in, f }))
	missing := func(resource string) k8stesting.ReactionFunc {
		return func(k8stesting.Action) (bool, runtime.Object, error) {
			return !installed.Load(), nil, apierrors.NewNotFound(schema.GroupResource{Resource: resource}, "")
		}
	}
	h.Viper().Set("clustermesh-enable-mcs-api", true)
	require.NoError(t, h.Populate(hivetest.Logger(t)))
	fake.CiliumFakeClientset.PrependReactor("list", "ciliumnodes", missing("ciliumnodes"))
	fake.MCSAPIFakeClientset.PrependReactor("list", "serviceexports", missing("serviceexports"))
	ctx := context.Background()
	_, err := fake.CiliumV2().CiliumNodes().Create(ctx, &ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "worker-1"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = fake.MulticlusterV1alpha1().ServiceExports("foo").Create(ctx, &mcsapiv1alpha1.ServiceExport{
		ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "web", CreationTimestamp: metav1.Unix(1750000000, 0)}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = fake.SlimFakeClientset.CoreV1().Services("foo").Create(ctx, &slim_corev1.Service{
		ObjectMeta: slim_metav1.ObjectMeta{Namespace: "foo", Name: "web"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	start(t, h, nil)

	eventually(t, tb.DB, tb.Exports, "service-exports complete without its CRD", func(txn statedb.ReadTxn) bool {
		done, _ := tb.Exports.Initialized(txn)
		return done
	})
	done, _ := tb.Nodes.Initialized(tb.DB.ReadTxn())
	require.False(t, done, "nodes are not complete")

	installed.Store(true)
	eventually(t, tb.DB, tb.Nodes, "nodes complete", func(txn statedb.ReadTxn) bool {
		done, _ := tb.Nodes.Initialized(txn)
		return done && tb.Nodes.NumObjects(txn) == 1
	})
	eventually(t, tb.DB, tb.Exports, "the export", func(txn statedb.ReadTxn) bool { return tb.Exports.NumObjects(txn) == 1 })
}

// TestListRefused: what the API server refuses is tried again, and doesn't keep
// the other kinds.
func TestListRefused(t *testing.T) {
	var (
		tb      tables
		fake    *fakeclient.FakeClientset
		refused atomic.Bool
	)
	h := newHive(cell.Invoke(func(in tables, f *fakeclient.FakeClientset) { tb, fake = in, f }))
	require.NoError(t, h.Populate(hivetest.Logger(t)))
	refused.Store(true)
	refuse := func(k8stesting.Action) (bool, runtime.Object, error) {
		return refused.Load(), nil, apierrors.NewForbidden(schema.GroupResource{Resource: "ciliumnodes"}, "", nil)
	}
	fake.CiliumFakeClientset.PrependReactor("list", "ciliumnodes", refuse)
	fake.CiliumFakeClientset.PrependWatchReactor("ciliumnodes", func(k8stesting.Action) (bool, watch.Interface, error) {
		handled, _, err := refuse(nil)
		return handled, nil, err
	})
	start(t, h, nil)
	eventually(t, tb.DB, tb.Endpoints, "endpoints complete", func(txn statedb.ReadTxn) bool {
		done, _ := tb.Endpoints.Initialized(txn)
		return done
	})
	done, _ := tb.Nodes.Initialized(tb.DB.ReadTxn())
	require.False(t, done)
	refused.Store(false)
	eventually(t, tb.DB, tb.Nodes, "nodes complete", func(txn statedb.ReadTxn) bool {
		done, _ := tb.Nodes.Initialized(txn)
		return done
	})
}
