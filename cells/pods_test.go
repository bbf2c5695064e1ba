// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package cells_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ktypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	// patience is for a machine that does much else meanwhile.
	patience = 3 * time.Minute
	tick     = 50 * time.Millisecond
)

// exporter is "waggle clustermesh" as it runs.
type exporter struct {
	*mesh.Hive
	inside // set by each start
}

// inside is what a test looks at.
type inside struct {
	cell.In

	DB        *statedb.DB
	Workloads statedb.Table[*state.Workload]
	Endpoints statedb.Table[*state.Endpoint]
	Health    statedb.Table[types.Status]
	Export    *export.Exporter
}

func newExporter(t *testing.T, cluster *mesh.Cluster, kubeconfig string, flags mesh.Flags) *exporter {
	t.Helper()
	e := &exporter{}
	e.Hive = mesh.NewHive(t, cluster.Flags(mesh.Flags{
		"kvstore-opt": etcd.OptAddress + "=" + cluster.Etcd.URL(), "k8s-kubeconfig-path": kubeconfig,
	}, flags), cells.Exporter, cell.Invoke(func(in inside) { e.inside = in }))
	return e
}

// workloads are the rows of the table, as text.
func (e *exporter) workloads() map[string]string {
	rows := map[string]string{}
	for w := range e.Workloads.All(e.DB.ReadTxn()) {
		columns := w.TableRow()
		rows[w.Namespace+"/"+w.Pod] = strings.TrimRight(strings.Join(columns[2:], " "), " ")
	}
	return rows
}

func initialized[T any](e *exporter, table statedb.Table[T]) bool {
	done, _ := table.Initialized(e.DB.ReadTxn())
	return done
}

// create makes a pod as a user would.
func create(t *testing.T, server *kubeapi.Server, name string, labels, annotations map[string]string) {
	t.Helper()
	_, err := server.Kubernetes.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// annotate patches annotations; null removes one.
func annotate(t *testing.T, server *kubeapi.Server, name, annotations string) {
	t.Helper()
	_, err := server.Kubernetes.CoreV1().Pods("default").Patch(t.Context(), name, ktypes.MergePatchType,
		[]byte(`{"metadata":{"annotations":`+annotations+`}}`), metav1.PatchOptions{})
	require.NoError(t, err)
}

// TestWatchOfPods: by the API server's own account, pods are watched where what they
// say makes a difference, and nowhere else.
func TestWatchOfPods(t *testing.T) {
	server := kubeapi.Start(t)
	watches := func() float64 {
		n, err := server.Metric(t.Context(), "apiserver_longrunning_requests", map[string]string{"resource": "pods", "verb": "WATCH"})
		require.NoError(t, err)
		return n
	}
	create(t, server, "silent", map[string]string{"app": "web"}, nil)
	create(t, server, "labelled", map[string]string{filter.SyncKey: "true"}, nil)
	create(t, server, "annotated", nil, map[string]string{filter.ScopeKey: "regional"})
	create(t, server, "malformed", nil, map[string]string{filter.SyncKey: "maybe"})
	listed := map[string]string{
		"default/labelled":  "true",
		"default/annotated": " regional",
		"default/malformed": `   annotation ` + filter.SyncKey + `="maybe": must be true or false`,
	}
	cluster := mesh.NewCluster(t, "cluster1", 1)

	for _, test := range []struct {
		name    string
		flags   mesh.Flags
		watched float64
	}{
		{"all", nil, 0},
		{"opt-in", mesh.Flags{filter.FlagSyncMode: string(filter.SyncOptIn)}, 1},
		{"all, in a region", mesh.Flags{export.FlagClusterRegion: "eu"}, 1},
		{"opt-in, in a region", mesh.Flags{filter.FlagSyncMode: string(filter.SyncOptIn), export.FlagClusterRegion: "eu"}, 1},
		{"slices", mesh.Flags{"enable-cilium-endpoint-slice": "true"}, 0},
		{"slices, opt-in", mesh.Flags{filter.FlagSyncMode: string(filter.SyncOptIn), "enable-cilium-endpoint-slice": "true"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			// The server has watches of its own.
			before := watches()
			e := newExporter(t, cluster, server.Kubeconfig, test.flags)
			e.Start()
			select {
			case <-e.Export.Synced():
			case <-time.After(patience):
				require.FailNow(t, "nothing is exported")
			}
			require.Eventually(t, func() bool { return initialized(e, e.Workloads) }, patience, tick)
			if test.watched > 0 {
				require.Equal(t, listed, e.workloads())
			} else {
				require.Empty(t, e.workloads())
			}
			require.Eventually(t, func() bool { return watches() == before+test.watched }, patience, tick)
			e.Stop()
			require.Eventually(t, func() bool { return watches() == before }, patience, tick)
		})
	}
}

// TestPodsChange follows pods through changes of what they say, and through a crash of
// the API server.
func TestPodsChange(t *testing.T) {
	server := kubeapi.Start(t)
	create(t, server, "a", nil, map[string]string{filter.SyncKey: "true"})
	create(t, server, "b", map[string]string{filter.SyncKey: "true"}, nil)
	create(t, server, "c", map[string]string{"app": "web"}, nil)
	e := newExporter(t, mesh.NewCluster(t, "cluster1", 1), server.Kubeconfig, mesh.Flags{filter.FlagSyncMode: string(filter.SyncOptIn)})
	e.Start()
	becomes := func(what string, want map[string]string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, e.workloads()) }, patience, tick, what)
	}
	becomes("the first list", map[string]string{"default/a": "true", "default/b": "true"})

	annotate(t, server, "a", `{"`+filter.SyncKey+`":"false"}`)
	annotate(t, server, "b", `{"`+filter.SyncKey+`":"false"}`)
	annotate(t, server, "c", `{"`+filter.ScopeKey+`":"regional"}`)
	becomes("an annotation changes, one comes before a label, one is new",
		map[string]string{"default/a": "false", "default/b": "false", "default/c": " regional"})

	annotate(t, server, "a", `{"`+filter.SyncKey+`":null}`)
	annotate(t, server, "b", `{"`+filter.SyncKey+`":null}`)
	becomes("annotations go, and leave a label", map[string]string{"default/b": "true", "default/c": " regional"})

	require.NoError(t, server.Kill())
	require.NoError(t, server.Restart(t.Context()))
	annotate(t, server, "a", `{"`+filter.SyncKey+`":"true"}`)
	err := server.Kubernetes.CoreV1().Pods("default").Delete(t.Context(), "c", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
	require.NoError(t, err)
	becomes("after a crash", map[string]string{"default/a": "true", "default/b": "true"})
}

// TestPodsPermission: reading pods takes permission to list and watch them. Without it
// the rest is read, the table of workloads isn't complete, and health says why.
func TestPodsPermission(t *testing.T) {
	server := kubeapi.Start(t)
	ctx := t.Context()
	meta := metav1.ObjectMeta{Name: "exporter"}
	_, err := server.Kubernetes.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
	require.NoError(t, err)
	read := func(group string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: []string{"list", "watch"}}
	}
	role := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}, ResourceNames: []string{"kube-system"}},
		read("", "namespaces", "services"),
		read("discovery.k8s.io", "endpointslices"),
		read("cilium.io", "ciliumnodes", "ciliumidentities", "ciliumendpoints"),
	}}
	_, err = server.Kubernetes.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: meta.Name}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	create(t, server, "a", nil, map[string]string{filter.SyncKey: "true"})

	e := newExporter(t, mesh.NewCluster(t, "cluster1", 1), kubeconfigOf(t, server, meta.Name), mesh.Flags{filter.FlagSyncMode: string(filter.SyncOptIn)})
	e.Start()
	require.Eventually(t, func() bool { return initialized(e, e.Endpoints) }, patience, tick)
	require.Eventually(t, func() bool {
		for status := range e.Health.All(e.DB.ReadTxn()) {
			if status.Level == types.LevelDegraded && strings.Contains(status.Error, "pods is forbidden") {
				return true
			}
		}
		return false
	}, patience, tick)
	require.False(t, initialized(e, e.Workloads))

	role.Rules = append(role.Rules, read("", "pods"))
	_, err = server.Kubernetes.RbacV1().ClusterRoles().Update(ctx, role, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return initialized(e, e.Workloads) }, patience, tick)
	require.Equal(t, map[string]string{"default/a": "true"}, e.workloads())
}

// kubeconfigOf writes one for a service account.
func kubeconfigOf(t *testing.T, server *kubeapi.Server, account string) string {
	t.Helper()
	token, err := server.Kubernetes.CoreV1().ServiceAccounts("default").
		CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	config, err := clientcmd.LoadFromFile(server.Kubeconfig)
	require.NoError(t, err)
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*config, path))
	return path
}

// TestSyncModeRefused: a mode that there isn't is an error of the start, by the name of
// its flag.
func TestSyncModeRefused(t *testing.T) {
	h := hive.New(cells.Exporter)
	h.Viper().Set(filter.FlagSyncMode, "some")
	h.Viper().Set("cluster-name", "cluster1")
	h.Viper().Set("cluster-id", 1)
	h.Viper().Set("k8s-manifests", t.TempDir())
	log := mesh.Log(t)
	require.ErrorContains(t, h.Start(log, t.Context()), `--`+filter.FlagSyncMode+`="some"`)
	require.NoError(t, h.Stop(log, context.Background()))
}
