// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/skip"
)

const patience = 3 * time.Minute

// northPort is where the other cluster's etcd is.
const northPort = 32379

// values are what an operator would say, but for the other clusters; everything else is the
// chart's.
const values = `
cluster: {name: west, id: 2}
clustermesh:
  useAPIServer: true
  config:
    enabled: true
    clusters: %s
  apiserver:
    metrics: {enabled: true, kvstoremesh: {enabled: true}, etcd: {enabled: true}}
`

// Other clusters: one, or none that is enabled.
const (
	north   = "[{name: north, port: 32379, ips: [127.0.0.1]}]"
	nobody  = "[]"
	noNorth = "[{name: north, enabled: false}]"
)

// TestChart runs the Deployment of upstream's chart with this program in its image.
func TestChart(t *testing.T) {
	if failure := os.Getenv(chartErrorEnv); failure != "" {
		skip.Lacking(t, fmt.Errorf("no program to render charts with, building it failed: %s", failure))
	}
	api := kubeapi.Start(t)
	createEndpoint(t, api)
	p := newPod(t, render(t, north), api)
	p.startNorth()

	run(t, p.command(p.container("etcd-init")))
	p.start("etcd", p.command(p.container("etcd")))
	apiserver, kvstoremesh := p.command(p.container("apiserver")), p.command(p.container("kvstoremesh"))
	p.start("apiserver", apiserver)
	p.start("kvstoremesh", kvstoremesh)
	for _, name := range []string{"apiserver", "kvstoremesh"} {
		c := p.container(name)
		require.EventuallyWithT(t, func(col *assert.CollectT) {
			require.Equal(col, http.StatusOK, status(fmt.Sprintf("http://127.0.0.1:%d%s", port(t, c, c.ReadinessProbe.HTTPGet.Port.StrVal), c.ReadinessProbe.HTTPGet.Path)))
		}, patience, 50*time.Millisecond, name)
	}

	// Upstream's own commands, in the containers where operators run them.
	dbg := func(name string, args ...string) string {
		c := p.container(name)
		c.Args = args
		return run(t, p.command(c))
	}
	require.Contains(t, dbg("kvstoremesh", "kvstoremesh-dbg", "status", "--verbose"), "1/1 remote clusters ready")
	for _, report := range []string{
		dbg("kvstoremesh", "kvstoremesh-dbg", "troubleshoot", "--include-local"),
		dbg("apiserver", "clustermesh-dbg", "troubleshoot"),
	} {
		require.Contains(t, report, "✅")
		require.NotContains(t, report, "❌")
	}

	// What each part is for.
	client := p.etcd("admin-west", 2379)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		for _, prefix := range []string{wire.StatePrefix(wire.Endpoints, "west"), wire.CachePrefix(wire.Endpoints, "north")} {
			resp, err := client.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
			require.NoError(c, err)
			require.EqualValues(c, 1, resp.Count, prefix)
		}
		user, err := client.UserGet(t.Context(), "remote-north")
		require.NoError(c, err)
		require.Equal(c, []string{"remote"}, user.Roles)
	}, patience, 50*time.Millisecond)
	for name, namespace := range map[string]string{
		"apiserver": metrics.CiliumClusterMeshAPIServerNamespace, "kvstoremesh": metrics.CiliumKVStoreMeshNamespace,
	} {
		checkFed(t, p.container(name), namespace)
	}
	checkShell(t, p.container("apiserver"), p, apiserver, "etcd-users", "readyz")
	checkShell(t, p.container("kvstoremesh"), p, kvstoremesh, "leader", "readyz")
	checkTakeOver(t, p, client, kvstoremesh)
	checkAlone(t, p, client, apiserver)
}

// checkAlone has the other clusters leave: the chart's list of users is then empty, and
// the last of them has no access any more.
func checkAlone(t *testing.T, p *pod, client *clientv3.Client, apiserver *exec.Cmd) {
	t.Helper()
	const configMap, file = "clustermesh-remote-users", "users.yaml"
	for _, clusters := range []string{noNorth, nobody} {
		at := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == configMap })
		require.NotEqual(t, -1, at)
		next := p.write(file, []byte(render(t, clusters).configMaps[configMap].Data[file]))
		require.NoError(t, os.Rename(next, filepath.Join(p.volumes[p.spec.Volumes[at].Name], file)))
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			users, err := client.UserList(t.Context())
			require.NoError(c, err)
			require.NotContains(c, users.Users, "remote-north")
			require.Contains(c, healthOf(c, apiserver), "etcd-users: OK: 0 users")
		}, patience, 50*time.Millisecond)
	}
}

// createEndpoint has one pod in the cluster.
func createEndpoint(t *testing.T, api *kubeapi.Server) {
	t.Helper()
	const namespace = "shop"
	_, err := api.Kubernetes.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	require.NoError(t, err)
	endpoints := api.Cilium.CiliumV2().CiliumEndpoints(namespace)
	_, err = endpoints.Create(t.Context(), &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: "web-0", Namespace: namespace},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: 131072 + 10},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: "10.2.0.10"}}, NodeIP: "172.18.0.3"},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// manifests are those of the chart that the Deployment uses.
type manifests struct {
	deployment appsv1.Deployment
	secrets    map[string]corev1.Secret
	configMaps map[string]corev1.ConfigMap
}

// render renders the chart with these other clusters.
func render(t *testing.T, clusters string) *manifests {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, values, clusters), 0o600))
	chart := filepath.Join(os.Getenv(upstreamEnv), "install", "kubernetes", "cilium")
	cmd := exec.Command(chartBinary, "--values", file, chart)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	require.NoError(t, err, stderr.String())

	m := &manifests{secrets: map[string]corev1.Secret{}, configMaps: map[string]corev1.ConfigMap{}}
	for _, document := range strings.Split("\n"+string(output), "\n---\n") {
		var meta struct {
			metav1.TypeMeta
			metav1.ObjectMeta `json:"metadata"`
		}
		require.NoError(t, yaml.Unmarshal([]byte(document), &meta))
		switch meta.Kind {
		case "Secret":
			var secret corev1.Secret
			require.NoError(t, yaml.Unmarshal([]byte(document), &secret))
			m.secrets[meta.Name] = secret
		case "ConfigMap":
			var configMap corev1.ConfigMap
			require.NoError(t, yaml.Unmarshal([]byte(document), &configMap))
			m.configMaps[meta.Name] = configMap
		case "Deployment":
			if meta.Name == "clustermesh-apiserver" {
				require.NoError(t, yaml.Unmarshal([]byte(document), &m.deployment))
			}
		}
	}
	require.NotEmpty(t, m.deployment.Spec.Template.Spec.Containers)
	return m
}

// newPod makes the volumes, and what a kubelet and the image add to them.
func newPod(t *testing.T, m *manifests, api *kubeapi.Server) *pod {
	t.Helper()
	dir := t.TempDir()
	p := &pod{t: t, dir: dir, manifests: m, spec: m.deployment.Spec.Template.Spec, uid: "e2f1a8f0-5f0c-4a54-9d0b-6f0a4b6f7d11",
		volumes: map[string]string{}, files: map[string]string{}}
	p.join(api)
	for _, volume := range p.spec.Volumes {
		at := filepath.Join(dir, "volumes", volume.Name)
		require.NoError(t, os.MkdirAll(at, 0o700))
		p.volumes[volume.Name] = at
		switch {
		case volume.Projected != nil:
			for _, source := range volume.Projected.Sources {
				require.NotNil(t, source.Secret, volume.Name)
				writeItems(t, at, m.secrets[source.Secret.Name].Data, source.Secret.Items)
			}
		case volume.ConfigMap != nil:
			for key, value := range m.configMaps[volume.ConfigMap.Name].Data {
				require.NoError(t, os.WriteFile(filepath.Join(at, key), []byte(value), 0o600))
			}
		}
	}

	hosts := "127.0.0.1 localhost\n"
	for _, alias := range p.spec.HostAliases {
		hosts += alias.IP + " " + strings.Join(alias.Hostnames, " ") + "\n"
	}
	p.files["/etc/hosts"] = p.write("hosts", []byte(hosts))
	p.files["/var/lib/cilium/etcd-config.yaml"] = filepath.Join(os.Getenv(upstreamEnv), "clustermesh-apiserver", "etcd-config.yaml")
	return p
}

// join gives the containers what a kubelet does, so that they find the API server.
func (p *pod) join(api *kubeapi.Server) {
	t := p.t
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", api.Kubeconfig)
	require.NoError(t, err)
	server, err := url.Parse(config.Host)
	require.NoError(t, err)
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	p.files[account+"token"] = p.write("token", []byte(config.BearerToken))
	p.files[account+"ca.crt"] = p.write("ca.crt", config.CAData)
	p.env = []string{"KUBERNETES_SERVICE_HOST=" + server.Hostname(), "KUBERNETES_SERVICE_PORT=" + server.Port(), "GOPS_CONFIG_DIR=" + p.dir}
}

func writeItems(t *testing.T, dir string, data map[string][]byte, items []corev1.KeyToPath) {
	t.Helper()
	if items == nil {
		for key := range data {
			items = append(items, corev1.KeyToPath{Key: key, Path: key})
		}
	}
	for _, item := range items {
		require.NoError(t, os.WriteFile(filepath.Join(dir, item.Path), data[item.Key], 0o600))
	}
}

func (p *pod) write(name string, content []byte) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	require.NoError(p.t, os.WriteFile(path, content, 0o600))
	return path
}

// container is the one of a name in the Deployment.
func (p *pod) container(name string) corev1.Container {
	p.t.Helper()
	for _, c := range append(append([]corev1.Container(nil), p.spec.InitContainers...), p.spec.Containers...) {
		if c.Name == name {
			return *c.DeepCopy()
		}
	}
	p.t.Fatalf("the chart has no container %q", name)
	return corev1.Container{}
}

// startNorth starts the etcd of another cluster, with its users, and a pod in it.
func (p *pod) startNorth() {
	t := p.t
	t.Helper()
	data := filepath.Join(p.dir, "north")
	require.NoError(t, os.Mkdir(data, 0o700))
	init, server := p.container("etcd-init"), p.container("etcd")
	mounts := map[string]string{"/var/lib/etcd-secrets": p.volumes["etcd-server-secrets"]}
	run(t, p.process("north-init", container{Mounts: map[string]string{}, Env: []string{"CILIUM_CLUSTER_NAME=north"},
		Command: append(init.Command, "etcdinit", "--etcd-cluster-name=north", "--etcd-initial-cluster-token=north", "--etcd-data-dir="+data)}))
	p.start("north", p.process("north", container{Mounts: mounts, Command: append(server.Command,
		"--data-dir="+data, "--name=north", "--initial-cluster-token=north", "--client-cert-auth",
		"--trusted-ca-file=/var/lib/etcd-secrets/ca.crt", "--cert-file=/var/lib/etcd-secrets/tls.crt", "--key-file=/var/lib/etcd-secrets/tls.key",
		fmt.Sprintf("--listen-client-urls=https://127.0.0.1:%d", northPort), fmt.Sprintf("--advertise-client-urls=https://127.0.0.1:%d", northPort),
		"--listen-peer-urls=http://127.0.0.1:32380", "--initial-advertise-peer-urls=http://127.0.0.1:32380", "--initial-cluster=north=http://127.0.0.1:32380")}))

	client := p.etcd("admin-north", northPort)
	content := map[string]string{
		wire.ClusterConfigKey("north"):                          `{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`,
		wire.StatePrefix(wire.Endpoints, "north") + "10.1.0.10": `{"IP":"10.1.0.10","ID":65546,"HostIP":"172.18.0.2"}`,
		wire.HeartbeatKey:                                       time.Now().Format(time.RFC3339),
	}
	for _, resource := range wire.Resources {
		content[wire.CanaryKey(resource, "north", false)] = "now"
	}
	for key, value := range content {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := client.Put(ctx, key, value)
		cancel()
		require.NoError(t, err)
	}
}

// etcd is a client of one of the etcds with a certificate of the chart's CA.
func (p *pod) etcd(user string, port int) *clientv3.Client {
	p.t.Helper()
	ca := p.manifests.secrets["cilium-ca"].Data
	pool := x509.NewCertPool()
	require.True(p.t, pool.AppendCertsFromPEM(ca["ca.crt"]))
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{fmt.Sprintf("https://127.0.0.1:%d", port)},
		TLS:       &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificateFor(p.t, ca["ca.crt"], ca["ca.key"], user)}},
	})
	require.NoError(p.t, err)
	p.t.Cleanup(func() { client.Close() })
	return client
}

// certificateFor signs a client's certificate.
func certificateFor(t *testing.T, caCert, caKey []byte, name string) tls.Certificate {
	t.Helper()
	authority, err := tls.X509KeyPair(caCert, caKey)
	require.NoError(t, err)
	parent, err := x509.ParseCertificate(authority.Certificate[0])
	require.NoError(t, err)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, parent, &key.PublicKey, authority.PrivateKey)
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	require.NoError(t, err)
	return pair
}

// port is the number of a container's port.
func port(t *testing.T, c corev1.Container, name string) int32 {
	t.Helper()
	for _, port := range c.Ports {
		if port.Name == name {
			return port.ContainerPort
		}
	}
	t.Fatalf("the container %q has no port %q", c.Name, name)
	return 0
}

// status is the code that an address answers with; 0 if it doesn't.
func status(address string) int {
	resp, err := http.Get(address)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}
