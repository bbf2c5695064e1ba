// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/k8s/client"
	slim_clientset "github.com/cilium/cilium/pkg/k8s/slim/k8s/client/clientset/versioned"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// readerOf asks the API servers that the flags name, as an agent with
// --datastore=etcd does.
func readerOf(cfg client.SharedConfig) *serviceReader {
	return &serviceReader{connect: func() ([]slim_clientset.Interface, error) {
		return slimClients(client.Config{SharedConfig: cfg})
	}}
}

// TestServiceReader reads what a real API server has.
func TestServiceReader(t *testing.T) {
	server := kubeapi.Start(t)
	name := reading.ServiceName{Namespace: "default", Name: "cache"}
	createCacheService(t, server, name)
	want := reading.ServiceBackends{PortName: "etcd", Addresses: []string{
		"10.0.0.1:2390", "10.0.0.3:2390", "10.0.0.4:2391", "[fd00::1]:2390",
	}}
	ask := func(reader *serviceReader) (reading.ServiceBackends, error) {
		// The dead have a share of this. An answer is there in some milliseconds.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return reader.Backends(ctx, name, 2379)
	}
	live, dead := plainFront(t, server), blackhole(t)

	t.Run("by kubeconfig", func(t *testing.T) {
		reader := readerOf(client.SharedConfig{K8sKubeConfigPath: server.Kubeconfig})
		got, err := ask(reader)
		require.NoError(t, err)
		require.Equal(t, want, got)

		_, err = reader.Backends(t.Context(), name, 1)
		require.ErrorContains(t, err, "no port 1")
		_, err = reader.Backends(t.Context(), reading.ServiceName{Namespace: "default", Name: "none"}, 2379)
		require.ErrorContains(t, err, "not found")
		got, err = reader.Backends(t.Context(), name, 9000)
		require.NoError(t, err)
		require.Equal(t, reading.ServiceBackends{PortName: "metrics", Addresses: []string{"10.0.0.1:9001", "10.0.0.3:9001"}}, got)
	})
	t.Run("by one address", func(t *testing.T) {
		got, err := ask(readerOf(client.SharedConfig{K8sAPIServer: live}))
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
	t.Run("beside one that says nothing", func(t *testing.T) {
		reader := readerOf(client.SharedConfig{K8sAPIServerURLs: []string{dead, live, ""}})
		// Their order is random: the dead one is asked first by whoever doesn't know.
		clients, _, err := reader.connected()
		require.NoError(t, err)
		require.Len(t, clients, 2)
		atLive := 0
		if hostOf(clients[1]) == live {
			atLive = 1
		}
		reader.first = 1 - atLive
		got, err := ask(reader)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, atLive, reader.first, "which is asked first from now on")
		got, err = ask(reader)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
	t.Run("by a kubeconfig that is mounted late", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "kubeconfig")
		reader := readerOf(client.SharedConfig{K8sKubeConfigPath: path})
		_, err := ask(reader)
		require.ErrorContains(t, err, path)
		content, err := os.ReadFile(server.Kubeconfig)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		got, err := ask(reader)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

// TestRestConfigs has the rules by which upstream's client finds its API servers.
func TestRestConfigs(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // tests may run in a pod
	hosts := func(cfg client.SharedConfig) (hosts []string) {
		configs, err := restConfigs(client.Config{SharedConfig: cfg})
		require.NoError(t, err)
		for _, rc := range configs {
			hosts = append(hosts, rc.Host)
		}
		return hosts
	}
	require.Equal(t, []string{"http://a:1"}, hosts(client.SharedConfig{K8sAPIServer: "a:1", K8sAPIServerURLs: []string{"http://b:1"}}))
	require.Equal(t, []string{"http://b:1", "http://c:1"}, hosts(client.SharedConfig{K8sAPIServerURLs: []string{"http://b:1", "http://c:1"}}))
	_, err := restConfigs(client.Config{SharedConfig: client.SharedConfig{K8sAPIServerURLs: []string{"b:1"}}})
	require.ErrorIs(t, err, rest.ErrNotInCluster, "it is https")
	_, err = restConfigs(client.Config{})
	require.ErrorIs(t, err, errNotConfigured)
}

// hostOf is the URL of a client's API server.
func hostOf(slim slim_clientset.Interface) string {
	u := slim.CoreV1().RESTClient().Get().URL()
	return u.Scheme + "://" + u.Host
}

// createCacheService creates a Service of two ports with slices of both families, in
// which not everything is a backend of each port.
func createCacheService(t *testing.T, server *kubeapi.Server, name reading.ServiceName) {
	ctx, services := t.Context(), server.Kubernetes.CoreV1().Services(name.Namespace)
	_, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name.Name},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{
			{Name: "metrics", Port: 9000}, {Name: "etcd", Port: 2379},
		}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	port := func(name string, number int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)}
	}
	both := []discoveryv1.EndpointPort{port("etcd", 2390), port("metrics", 9001)}
	endpoint := func(address string, ready *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ready}}
	}
	for i, slice := range []discoveryv1.EndpointSlice{
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: both, Endpoints: []discoveryv1.Endpoint{
			endpoint("10.0.0.3", ptr.To(true)), endpoint("10.0.0.2", ptr.To(false)), endpoint("10.0.0.1", nil),
		}},
		// A pod may have another number for the same name, and be in two slices.
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{port("etcd", 2391)},
			Endpoints: []discoveryv1.Endpoint{endpoint("10.0.0.4", ptr.To(true))}},
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: both[:1],
			Endpoints: []discoveryv1.Endpoint{endpoint("10.0.0.3", ptr.To(true))}},
		{AddressType: discoveryv1.AddressTypeIPv6, Ports: both[:1],
			Endpoints: []discoveryv1.Endpoint{endpoint("fd00::1", ptr.To(true))}},
		{AddressType: discoveryv1.AddressTypeFQDN, Ports: both[:1],
			Endpoints: []discoveryv1.Endpoint{endpoint("cache.example.com", ptr.To(true))}},
	} {
		slice.Name = name.Name + string(rune('a'+i))
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: name.Name}
		_, err := server.Kubernetes.DiscoveryV1().EndpointSlices(name.Namespace).Create(ctx, &slice, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	// Another Service's, in the same namespace.
	_, err = server.Kubernetes.DiscoveryV1().EndpointSlices(name.Namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "other", Labels: map[string]string{discoveryv1.LabelServiceName: "other"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: both, Endpoints: []discoveryv1.Endpoint{endpoint("10.0.0.9", nil)},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// plainFront is the API server's address in plain text, with the admin's rights.
func plainFront(t *testing.T, server *kubeapi.Server) string {
	target, err := url.Parse(server.RESTConfig.Host)
	require.NoError(t, err)
	transport, err := rest.TransportFor(server.RESTConfig)
	require.NoError(t, err)
	front := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
	})
	t.Cleanup(front.Close)
	return front.URL
}

// blackhole is the address of a server that takes connections and never says anything.
func blackhole(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() }) // the kernel takes connections, and nobody has a look
	return "http://" + listener.Addr().String()
}
