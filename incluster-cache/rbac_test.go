// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// manifest is docs/incluster-cache.yaml, decoded strictly.
type manifest struct {
	account    corev1.ServiceAccount
	role       rbacv1.ClusterRole
	binding    rbacv1.ClusterRoleBinding
	agents     rbacv1.Role
	toAgents   rbacv1.RoleBinding
	service    corev1.Service
	budget     policyv1.PodDisruptionBudget
	deployment appsv1.Deployment
}

func readManifest(t testing.TB) (m manifest) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "docs", "incluster-cache.yaml"))
	require.NoError(t, err)
	into := map[string]any{
		"ServiceAccount": &m.account, "ClusterRole": &m.role, "ClusterRoleBinding": &m.binding,
		"Role": &m.agents, "RoleBinding": &m.toAgents,
		"Service": &m.service, "PodDisruptionBudget": &m.budget, "Deployment": &m.deployment,
	}
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(content)))
	buffer := make([]byte, len(content))
	for {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		var meta metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(buffer[:n], &meta))
		object, ok := into[meta.Kind]
		require.True(t, ok, "kind %q", meta.Kind)
		require.NoError(t, yaml.UnmarshalStrict(buffer[:n], object), meta.Kind)
		delete(into, meta.Kind)
	}
	require.Empty(t, into, "kinds that the manifest lacks")
	return m
}

// witness passes requests on to an API server under one service account's token,
// and notes what was watched and what was forbidden.
type witness struct {
	mu        sync.Mutex
	watched   map[string]bool // "group/resource"
	forbidden []string
}

// kubeconfig starts the witness and writes a kubeconfig for the way through it.
func (w *witness) kubeconfig(t testing.TB, server *kubeapi.Server, token string) string {
	t.Helper()
	config := rest.AnonymousClientConfig(server.RESTConfig)
	config.BearerToken = token
	transport, err := rest.TransportFor(config)
	require.NoError(t, err)
	target, err := url.Parse(server.RESTConfig.Host)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Header.Del("Authorization") },
		ModifyResponse: func(resp *http.Response) error {
			w.note(resp)
			return nil
		},
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(func() { front.CloseClientConnections(); front.Close() })
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{Server: front.URL}
	kubeconfig.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	kubeconfig.CurrentContext = "c"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*kubeconfig, path))
	return path
}

func (w *witness) note(resp *http.Response) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if resp.StatusCode == http.StatusForbidden {
		w.forbidden = append(w.forbidden, resp.Request.Method+" "+resp.Request.URL.String())
	}
	// /api/v1/services, /apis/cilium.io/v2/ciliumnodes
	if watch, _ := strconv.ParseBool(resp.Request.URL.Query().Get("watch")); !watch {
		return
	}
	parts := strings.Split(strings.Trim(resp.Request.URL.Path, "/"), "/")
	switch {
	case len(parts) == 3 && parts[0] == "api":
		w.watched["/"+parts[2]] = true
	case len(parts) == 4 && parts[0] == "apis":
		w.watched[parts[1]+"/"+parts[3]] = true
	default:
		w.watched[resp.Request.URL.Path] = true
	}
}

func (w *witness) seen() (watched, forbidden []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.watched)), slices.Clone(w.forbidden)
}

// startCache runs a cache until the test ends, and waits until it is ready.
func startCache(t testing.TB, args ...string) *etcd.Client {
	t.Helper()
	var exporter *export.Exporter
	var client *etcd.Client
	h := hive.New(cells.InClusterCache, cell.Invoke(func(e *export.Exporter, c *etcd.Client) { exporter, client = e, c }))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse(append(args, "--listen-client-urls=http://127.0.0.1:0")))
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	require.NoError(t, h.Start(log, t.Context()))
	select {
	case <-exporter.Synced():
	case <-time.After(time.Minute):
		require.FailNow(t, "the cache isn't ready")
	}
	return client
}

// TestClusterRole runs the cache on the real API server with the role of the
// manifest: that is enough, all of it is used, and it is for reading alone.
func TestClusterRole(t *testing.T) {
	server := kubeapi.Start(t)
	m := readManifest(t)
	ctx := t.Context()
	_, err := server.Kubernetes.CoreV1().ServiceAccounts(m.account.Namespace).Create(ctx, &m.account, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.RbacV1().ClusterRoles().Create(ctx, &m.role, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.RbacV1().ClusterRoleBindings().Create(ctx, &m.binding, metav1.CreateOptions{})
	require.NoError(t, err)
	// The server takes the rest of the manifest as well.
	_, err = server.Kubernetes.CoreV1().Services(m.service.Namespace).Create(ctx, &m.service, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.AppsV1().Deployments(m.deployment.Namespace).Create(ctx, &m.deployment, metav1.CreateOptions{})
	require.NoError(t, err)
	token, err := server.Kubernetes.CoreV1().ServiceAccounts(m.account.Namespace).
		CreateToken(ctx, m.account.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)

	var permitted []string
	for _, rule := range m.role.Rules {
		if len(rule.ResourceNames) > 0 {
			// The one thing that is read by name, at the client's start.
			require.Equal(t, []string{"get"}, rule.Verbs)
			require.Equal(t, []string{"namespaces"}, rule.Resources)
			continue
		}
		require.Equal(t, []string{"list", "watch"}, rule.Verbs)
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				permitted = append(permitted, group+"/"+resource)
			}
		}
	}
	slices.Sort(permitted)

	all := &witness{watched: map[string]bool{}}
	kubeconfig := all.kubeconfig(t, server, token.Status.Token)
	for _, slicesToo := range []string{"false", "true"} {
		client := startCache(t, "--k8s-kubeconfig-path="+kubeconfig, "--enable-cilium-endpoint-slice="+slicesToo)
		value, err := client.Get(ctx, wire.CanaryKey(wire.Endpoints, wire.DefaultClusterInfo.Name, false))
		require.NoError(t, err)
		require.NotEmpty(t, value, "it is ready, and has no canary")
	}
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		watched, forbidden := all.seen()
		assert.Equal(collect, permitted, watched)
		assert.Empty(collect, forbidden)
	}, time.Minute, 20*time.Millisecond)

	// Of what isn't offered, nothing is asked for.
	nodes := &witness{watched: map[string]bool{}}
	startCache(t, "--k8s-kubeconfig-path="+nodes.kubeconfig(t, server, token.Status.Token), "--incluster-cache-resources=nodes")
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		watched, forbidden := nodes.seen()
		assert.Equal(collect, []string{"cilium.io/ciliumnodes"}, watched)
		assert.Empty(collect, forbidden)
	}, time.Minute, 20*time.Millisecond)

	// Another resource or another verb is refused.
	config := rest.AnonymousClientConfig(server.RESTConfig)
	config.BearerToken = token.Status.Token
	api, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	_, err = api.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	_, err = api.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = api.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = api.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = api.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = api.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
}

// TestAgentRole has an agent look for its cache with the role of the manifest: that is
// enough, and it is for that alone.
func TestAgentRole(t *testing.T) {
	server := kubeapi.Start(t)
	m := readManifest(t)
	ctx, subject := t.Context(), m.toAgents.Subjects[0]
	require.Equal(t, m.agents.Name, m.toAgents.RoleRef.Name)
	_, err := server.Kubernetes.CoreV1().ServiceAccounts(subject.Namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: subject.Name}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.RbacV1().Roles(m.agents.Namespace).Create(ctx, &m.agents, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.RbacV1().RoleBindings(m.toAgents.Namespace).Create(ctx, &m.toAgents, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.CoreV1().Services(m.service.Namespace).Create(ctx, &m.service, metav1.CreateOptions{})
	require.NoError(t, err)
	token, err := server.Kubernetes.CoreV1().ServiceAccounts(subject.Namespace).
		CreateToken(ctx, subject.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)

	asks := &witness{watched: map[string]bool{}}
	agent := (&mesh.Cluster{Name: "default"}).NewLocalAgent(t, "node-1", nil, nil, mesh.Flags{
		"k8s-kubeconfig-path": asks.kubeconfig(t, server, token.Status.Token),
		"kvstore-opt":         etcd.OptAddress + "=http://" + m.service.Name + "." + m.service.Namespace + ".svc",
	})
	agent.Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Contains(c, datastore(c, agent).LastError, "has no backend that is ready")
	}, patience, tick)
	watched, forbidden := asks.seen()
	require.Empty(t, watched)
	require.Empty(t, forbidden)

	config := rest.AnonymousClientConfig(server.RESTConfig)
	config.BearerToken = token.Status.Token
	api, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	_, err = api.CoreV1().Services(subject.Namespace).List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = api.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
}

// TestManifestFlags: the program takes the arguments of the Deployment.
func TestManifestFlags(t *testing.T) {
	m := readManifest(t)
	container := m.deployment.Spec.Template.Spec.Containers[0]
	require.Equal(t, "incluster-cache", container.Args[0])
	h := hive.New(cells.InClusterCache)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	// Of the program itself, not of the hive's cells.
	flags.Int("health-port", 0, "")
	flags.String("prometheus-serve-addr", "", "")
	require.NoError(t, flags.Parse(container.Args[1:]))
	require.Equal(t, m.role.Name, m.binding.RoleRef.Name)
	require.Equal(t, m.account.Name, m.binding.Subjects[0].Name)
	require.Equal(t, m.account.Name, m.deployment.Spec.Template.Spec.ServiceAccountName)
	require.Equal(t, m.service.Spec.Selector, m.deployment.Spec.Template.Labels)
	require.Equal(t, m.budget.Spec.Selector, m.deployment.Spec.Selector)
}
