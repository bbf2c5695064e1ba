// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// workload is what pods have in common that share an identity.
type workload struct {
	name, namespace, account, tier string
	identity                       uint32
}

var (
	namespaces = []string{"checkout", "catalogue", "payments", "identity", "shipping", "search", "messaging",
		"analytics", "media", "platform", "observability", "experiments"}
	components = []string{"frontend", "api", "worker", "gateway", "cache", "scheduler", "indexer", "notifier",
		"ledger", "exporter", "proxy", "consumer", "importer", "renderer", "resolver", "auditor"}
	tiers = []string{"edge", "logic", "data"}
)

// workload gives the workload of the i-th identity. Of each namespace there may
// be several by number, and of each component in it as well: in a cluster of
// 100 identities there are 12 namespaces of 8 or 9 workloads.
func (c Cluster) workload(i int) workload {
	namespace := namespaces[i%len(namespaces)]
	within := i / len(namespaces)
	if n := within / len(components); n > 0 {
		namespace = fmt.Sprintf("%s-%d", namespace, n)
	}
	name := namespaces[i%len(namespaces)] + "-" + components[within%len(components)]
	identities := wire.IdentityRangeFor(c.ID, c.mesh.MaxConnectedClusters())
	return workload{
		name: name, namespace: namespace, account: name, tier: tiers[i%len(tiers)],
		identity: identities.Min + wire.MinIdentity + uint32(i),
	}
}

func (c Cluster) identityEntry(i int) (string, []byte, error) {
	w := c.workload(i)
	return wire.IdentityKey(w.identity), []byte(wire.EncodeIdentityLabels(c.identityLabels(i))), nil
}

// identityLabels are the labels of the i-th identity.
func (c Cluster) identityLabels(i int) map[string]string {
	w := c.workload(i)
	return map[string]string{
		"k8s:app.kubernetes.io/component":     w.tier,
		"k8s:app.kubernetes.io/name":          w.name,
		"k8s:app.kubernetes.io/part-of":       w.namespace,
		"k8s:io.cilium.k8s.policy.cluster":    c.Name,
		"k8s:" + serviceAccountLabel:          w.account,
		"k8s:io.kubernetes.pod.namespace":     w.namespace,
		"k8s:" + namespaceLabel + "team":      namespaces[i%len(namespaces)],
		"k8s:" + namespaceLabel + nameOfSpace: w.namespace,
	}
}

const (
	serviceAccountLabel = "io.cilium.k8s.policy.serviceaccount"
	namespaceLabel      = "io.cilium.k8s.namespace.labels."
	nameOfSpace         = "kubernetes.io/metadata.name"
)

func (c Cluster) endpointEntry(i int) (string, []byte, error) {
	e := c.endpointObject(i)
	value, err := wire.MarshalEndpoint(&e)
	return wire.EndpointKey(e.Prefix), value, err
}

func (c Cluster) endpointObject(i int) wire.Endpoint {
	addr, node := c.endpoint(i)
	w := c.workload(i % c.mesh.Identities)
	return wire.Endpoint{
		Prefix:         netip.PrefixFrom(addr, addr.BitLen()),
		HostIP:         c.nodeAddress(node),
		Identity:       w.identity,
		Namespace:      w.namespace,
		Pod:            w.name + "-" + letters(c.draw(drawReplicaSet, i%c.mesh.Identities), 10) + "-" + letters(c.draw(drawPod, i), 5),
		ServiceAccount: w.account,
		Scope:          c.scope(i % c.mesh.Identities),
	}
}

// letters are random letters of those that Kubernetes makes names of.
func letters(random *rand.Rand, n int) string {
	const alphabet = "bcdfghjklmnpqrstvwxz2456789"
	out := make([]byte, n)
	for i := range out {
		out[i] = alphabet[random.IntN(len(alphabet))]
	}
	return string(out)
}

func (c Cluster) nodeEntry(i int) (string, []byte, error) {
	n := c.nodeObject(i)
	value, err := wire.MarshalNode(&n)
	return n.Name, value, err
}

// nodeObject has the address that it is known by to other nodes first.
func (c Cluster) nodeObject(i int) wire.Node {
	cidr := c.podCIDR(i)
	return wire.Node{
		Name: fmt.Sprintf("%s-node-%04d", c.Name, i+1), Cluster: c.Name, ClusterID: c.ID,
		Addresses: []wire.NodeAddress{
			{Type: "InternalIP", IP: c.nodeAddress(i)},
			{Type: "CiliumInternalIP", IP: nth(cidr.Addr(), 1)},
		},
		PodCIDRs4: []netip.Prefix{cidr},
		HealthIP4: nth(cidr.Addr(), 2),
		Labels: map[string]string{
			"kubernetes.io/arch":               "amd64",
			"kubernetes.io/hostname":           fmt.Sprintf("%s-node-%04d", c.Name, i+1),
			"kubernetes.io/os":                 "linux",
			"node.kubernetes.io/instance-type": "standard-8",
			"topology.kubernetes.io/region":    "region-1",
			"topology.kubernetes.io/zone":      fmt.Sprintf("region-1-%c", 'a'+i%3),
		},
		Source: "custom-resource",
		BootID: uuid(c.draw(drawBoot, i)),
	}
}

func uuid(random *rand.Rand) string {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], random.Uint64())
	binary.BigEndian.PutUint64(raw[8:], random.Uint64())
	text := hex.EncodeToString(raw[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// maxBackends is the number of backends of a service, if it has so many pods.
const maxBackends = 10

// servicePort is a port as the schema has it.
type servicePort struct {
	Protocol string
	Port     uint16
}

func (c Cluster) serviceEntry(i int) (string, []byte, error) {
	service, err := c.service(i)
	if err != nil {
		return "", nil, err
	}
	value, err := wire.MarshalService(service)
	return wire.ServiceKey(service.Namespace, service.Name), value, err
}

// service is the i-th one.
func (c Cluster) service(i int) (*wire.Service, error) {
	w := c.workload(i % c.mesh.Identities)
	name := w.name
	if n := i / c.mesh.Identities; n > 0 {
		name = fmt.Sprintf("%s-%d", name, n)
	}
	backends := map[string]map[string]servicePort{}
	for pod := i % c.mesh.Identities; pod < c.mesh.Endpoints && len(backends) < maxBackends; pod += c.mesh.Identities {
		addr, _ := c.endpoint(pod)
		backends[addr.String()] = map[string]servicePort{"http": {"TCP", 8080}}
	}
	raw, err := json.Marshal(map[string]any{
		"cluster": c.Name, "clusterID": c.ID, "namespace": w.namespace, "name": name,
		"shared": true, "includeExternal": true,
		"frontends": map[string]any{nth(serviceNetwork, i+1).String(): map[string]servicePort{"http": {"TCP", 80}}},
		"backends":  backends,
		"labels":    map[string]string{"app.kubernetes.io/name": w.name},
		"selector":  map[string]string{"app.kubernetes.io/name": w.name},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding service %s/%s: %w", w.namespace, name, err)
	}
	// Read and written once by the schema's own code, so that the bytes are
	// those of an exporter.
	return wire.DecodeService(wire.ServiceKey(w.namespace, name), raw)
}
