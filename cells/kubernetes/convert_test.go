// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"net/netip"
	"testing"

	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/operator/watchers"
	"github.com/cilium/cilium/pkg/k8s"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// collectProblems is a report that keeps what it is told.
func collectProblems(into *[]problem) report {
	return func(p problem, _ error) { *into = append(*into, p) }
}

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	object := new(T)
	require.NoError(t, yaml.Unmarshal([]byte(text), object))
	return object
}

func single(address string) netip.Prefix { return state.PrefixOf(netip.MustParseAddr(address)) }

func TestConvertIdentity(t *testing.T) {
	app := map[string]string{"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "foo"}
	for _, tt := range []struct {
		name     string
		object   string
		labels   map[string]string
		want     wire.Identity
		problems []problem
	}{
		{name: "sorted labels", object: "199472", labels: app,
			want: wire.Identity{ID: 199472, Labels: "k8s:app=web;k8s:io.kubernetes.pod.namespace=foo;"}},
		{name: "empty value", object: "256", labels: map[string]string{"k8s:role": ""},
			want: wire.Identity{ID: 256, Labels: "k8s:role=;"}},
		{name: "largest", object: "4294967295", labels: map[string]string{"k8s:a": "b"},
			want: wire.Identity{ID: 4294967295, Labels: "k8s:a=b;"}},
		{name: "no number", object: "web", labels: app, problems: []problem{problemName}},
		{name: "negative", object: "-1", labels: app, problems: []problem{problemName}},
		{name: "too large", object: "4294967296", labels: app, problems: []problem{problemName}},
		{name: "leading zeros", object: "007", labels: app, problems: []problem{problemName}},
		{name: "sign", object: "+7", labels: app, problems: []problem{problemName}},
		{name: "no labels", object: "199472", problems: []problem{problemLabels}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var problems []problem
			got, ok := convertIdentity(&ciliumv2.CiliumIdentity{
				ObjectMeta:     metav1.ObjectMeta{Name: tt.object},
				SecurityLabels: tt.labels,
			}, collectProblems(&problems))
			require.Equal(t, tt.problems, problems)
			require.Equal(t, len(tt.problems) == 0, ok)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestConvertEndpoint(t *testing.T) {
	host := netip.MustParseAddr("172.18.0.3")
	for _, tt := range []struct {
		name     string
		status   ciliumv2.EndpointStatus
		want     []claim
		problems []problem
	}{
		{
			name: "dual stack with everything",
			status: ciliumv2.EndpointStatus{
				Identity:       &ciliumv2.EndpointIdentity{ID: 199472},
				Encryption:     ciliumv2.EncryptionSpec{Key: 7},
				ServiceAccount: "default",
				NamedPorts:     models.NamedPorts{{Name: "http", Port: 8080, Protocol: "TCP"}, nil},
				Networking: &ciliumv2.EndpointNetworking{NodeIP: "172.18.0.3", Addressing: ciliumv2.AddressPairList{
					{IPV4: "10.244.1.79", IPV6: "fd00::79"},
				}},
			},
			want: []claim{
				{endpoint: wire.Endpoint{Prefix: single("10.244.1.79"), HostIP: host, Identity: 199472, EncryptionKey: 7,
					Namespace: "foo", Pod: "web", ServiceAccount: "default",
					NamedPorts: []wire.NamedPort{{Name: "http", Port: 8080, Protocol: "TCP"}}}},
				{endpoint: wire.Endpoint{Prefix: single("fd00::79"), HostIP: host, Identity: 199472, EncryptionKey: 7,
					Namespace: "foo", Pod: "web", ServiceAccount: "default",
					NamedPorts: []wire.NamedPort{{Name: "http", Port: 8080, Protocol: "TCP"}}}},
			},
		},
		{name: "no networking yet"},
		{
			name: "no identity, no node, several pairs",
			status: ciliumv2.EndpointStatus{Networking: &ciliumv2.EndpointNetworking{Addressing: ciliumv2.AddressPairList{
				{IPV4: "10.0.0.1"}, nil, {IPV6: "fd00::1"},
			}}},
			want: []claim{
				{endpoint: wire.Endpoint{Prefix: single("10.0.0.1"), Namespace: "foo", Pod: "web"}},
				{endpoint: wire.Endpoint{Prefix: single("fd00::1"), Namespace: "foo", Pod: "web"}},
			},
		},
		{
			name: "malformed address and node",
			status: ciliumv2.EndpointStatus{Networking: &ciliumv2.EndpointNetworking{NodeIP: "node-3", Addressing: ciliumv2.AddressPairList{
				{IPV4: "10.0.0.256", IPV6: "fd00::1"}, {IPV6: "fe80::1%eth0"},
			}}},
			want:     []claim{{endpoint: wire.Endpoint{Prefix: single("fd00::1"), Namespace: "foo", Pod: "web"}}},
			problems: []problem{problemAddress, problemAddress, problemAddress},
		},
		{
			name: "IPv4 in IPv6 clothes",
			status: ciliumv2.EndpointStatus{Networking: &ciliumv2.EndpointNetworking{Addressing: ciliumv2.AddressPairList{
				{IPV4: "::ffff:10.0.0.1"},
			}}},
			want: []claim{{endpoint: wire.Endpoint{Prefix: single("10.0.0.1"), Namespace: "foo", Pod: "web"}}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var problems []problem
			got, ok := convertEndpoint(&ciliumv2.CiliumEndpoint{
				ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "web"},
				Status:     tt.status,
			}, collectProblems(&problems))
			require.True(t, ok)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.problems, problems)
		})
	}
}

func TestConvertEndpointSlice(t *testing.T) {
	slice := parse[ciliumv2alpha1.CiliumEndpointSlice](t, `
metadata: {name: ces-a}
namespace: foo
endpoints:
- name: p1
  id: 199472
  encryption: {key: 3}
  service-account: default
  named-ports: [{name: http, port: 80, protocol: TCP}]
  networking: {node: 172.18.0.3, addressing: [{ipv4: 10.0.0.1, ipv6: "fd00::1"}]}
- name: p2
  id: 199475
- name: p3
  id: 199475
  networking: {addressing: [{ipv4: nonsense}, {ipv4: 10.0.0.3}]}
`)
	var problems []problem
	got, ok := convertEndpointSlice(slice, collectProblems(&problems))
	require.True(t, ok)
	require.Equal(t, []problem{problemNetworking, problemAddress}, problems)
	p1 := wire.Endpoint{HostIP: netip.MustParseAddr("172.18.0.3"), Identity: 199472, EncryptionKey: 3, Namespace: "foo",
		Pod: "p1", ServiceAccount: "default", NamedPorts: []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}}}
	p1v6 := p1
	p1.Prefix, p1v6.Prefix = single("10.0.0.1"), single("fd00::1")
	require.Equal(t, []claim{
		{pod: "p1", endpoint: p1},
		{pod: "p1", endpoint: p1v6},
		{pod: "p3", endpoint: wire.Endpoint{Prefix: single("10.0.0.3"), Identity: 199475, Namespace: "foo", Pod: "p3"}},
	}, got)
}

func TestConvertNode(t *testing.T) {
	node := parse[ciliumv2.CiliumNode](t, `
metadata:
  name: worker-1
  labels: {zone: west}
  annotations: {network.cilium.io/wg-pub-key: "key="}
spec:
  addresses:
  - {ip: 172.18.0.2, type: InternalIP}
  - {ip: "fc00::2", type: InternalIP}
  - {ip: nonsense, type: ExternalIP}
  - {ip: 10.244.1.88, type: CiliumInternalIP}
  bootid: 5ab7
  encryption: {key: 3}
  health: {ipv4: 10.244.1.90, ipv6: nonsense}
  ingress: {ipv6: "fd00::91"}
  nodeidentity: 6
  ipam:
    podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64", 10.244.9.0/33]
    pools:
      allocated:
      - {pool: default, cidrs: [10.244.2.0/24, "fd00:10:244:2::/64"]}
`)
	var problems []problem
	got, ok := convertNode(wire.ClusterInfo{Name: "cluster3", ID: 3})(node, collectProblems(&problems))
	require.True(t, ok)
	require.Equal(t, []problem{problemAddress, problemAddress, problemAddress}, problems)
	require.Equal(t, wire.Node{
		Name: "worker-1", Cluster: "cluster3", ClusterID: 3,
		Addresses: []wire.NodeAddress{
			{Type: "InternalIP", IP: netip.MustParseAddr("172.18.0.2")},
			{Type: "InternalIP", IP: netip.MustParseAddr("fc00::2")},
			{Type: "CiliumInternalIP", IP: netip.MustParseAddr("10.244.1.88")},
		},
		PodCIDRs4:     []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")},
		PodCIDRs6:     []netip.Prefix{netip.MustParsePrefix("fd00:10:244:1::/64"), netip.MustParsePrefix("fd00:10:244:2::/64")},
		HealthIP4:     netip.MustParseAddr("10.244.1.90"),
		IngressIP6:    netip.MustParseAddr("fd00::91"),
		EncryptionKey: 3,
		Labels:        map[string]string{"zone": "west"},
		Annotations:   map[string]string{"network.cilium.io/wg-pub-key": "key="},
		Source:        "custom-resource",
		NodeIdentity:  6,
		WireGuardKey:  "key=",
		BootID:        "5ab7",
	}, got)
}

// Every service can be read back by those who read the cluster's etcd, whatever its
// kind: one that is refused would be missing there.
func TestConvertClusterServiceIsReadable(t *testing.T) {
	origin := &state.Origin{Cluster: "default"}
	for name, spec := range map[string]string{
		"cluster IP":   "{clusterIP: 10.96.0.7, ports: [{name: http, port: 80, protocol: TCP}]}",
		"headless":     "{clusterIP: None, clusterIPs: [None]}",
		"no address":   "{type: ExternalName, externalName: example.com}",
		"not assigned": "{clusterIP: '', ports: [{port: 80}]}",
	} {
		t.Run(name, func(t *testing.T) {
			service := parse[slim_corev1.Service](t, "{metadata: {name: web, namespace: foo}, spec: "+spec+"}")
			row := convertClusterService(origin, service, nil)
			value, err := wire.MarshalService(row)
			require.NoError(t, err)
			got, err := wire.DecodeService(wire.ServiceKey("foo", "web"), value)
			require.NoError(t, err, string(value))
			require.Len(t, got.Frontends, map[bool]int{true: 1}[name == "cluster IP"])
		})
	}
}

func TestConvertClusterService(t *testing.T) {
	origin := &state.Origin{Cluster: "cluster3", ClusterID: 3}
	slice, ok := convertBackends(parse[slim_discoveryv1.EndpointSlice](t, `
metadata:
  name: web-1
  namespace: foo
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, hostname: web-0, zone: west, hints: {forZones: [{name: west}]}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: false}}
ports: [{name: http, port: 8080, protocol: TCP}]
`), func(p problem, err error) { t.Errorf("%s: %v", p, err) })
	require.True(t, ok)
	service := parse[slim_corev1.Service](t, `
metadata: {name: web, namespace: foo, labels: {app: web}}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:10:96::7"]
  selector: {app: web}
  ports: [{name: http, port: 80, protocol: TCP}]
`)
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		shared      bool // its backends are for other clusters
		global      bool // it takes those of other clusters
	}{
		{name: "plain"},
		{name: "global", annotations: map[string]string{"service.cilium.io/global": "true"}, shared: true, global: true},
		{name: "by the old name", annotations: map[string]string{"io.cilium/global-service": "true"}, shared: true, global: true},
		{name: "global, not shared", annotations: map[string]string{"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}, global: true},
		{name: "shared, not global", annotations: map[string]string{"service.cilium.io/shared": "true"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service := service.DeepCopy()
			service.Annotations = tt.annotations
			got := convertClusterService(origin, service, []*k8s.Endpoints{slice})
			require.Equal(t, tt.annotations, service.Annotations, "the object itself isn't touched")
			require.Equal(t, tt.shared, got.Shared)
			require.Equal(t, "cluster3", got.Cluster)
			require.EqualValues(t, 3, got.ClusterID)

			// What is shared is byte for byte what upstream writes.
			service.Annotations = map[string]string{"service.cilium.io/global": "true"}
			want, ok := watchers.DefaultClusterServiceConverter{}.Convert(service,
				func(string, string) []*k8s.Endpoints { return []*k8s.Endpoints{slice} })
			require.True(t, ok)
			want.Cluster, want.ClusterID, want.Shared, want.IncludeExternal = "cluster3", 3, tt.shared, tt.global
			wantBytes, err := want.Marshal()
			require.NoError(t, err)
			gotBytes, err := got.Marshal()
			require.NoError(t, err)
			require.Equal(t, string(wantBytes), string(gotBytes))
			require.Len(t, got.Backends, 1)
		})
	}
}

func TestConvertBackendsReportsMalformedAddresses(t *testing.T) {
	var problems []problem
	slice, ok := convertBackends(&slim_discoveryv1.EndpointSlice{
		ObjectMeta:  slim_metav1.ObjectMeta{Namespace: "foo", Name: "web-1"},
		AddressType: slim_discoveryv1.AddressTypeIPv4,
		Endpoints:   []slim_discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1", "10.0.0"}}},
	}, collectProblems(&problems))
	require.True(t, ok)
	require.Equal(t, []problem{problemAddress}, problems)
	require.Len(t, slice.Backends, 1)
}

func TestConvertExport(t *testing.T) {
	created := metav1.Unix(1750000000, 0)
	service := &slim_corev1.Service{
		ObjectMeta: slim_metav1.ObjectMeta{Namespace: "foo", Name: "web"},
		Spec: slim_corev1.ServiceSpec{
			ClusterIP: "10.96.0.7", SessionAffinity: slim_corev1.ServiceAffinityNone,
			Ports: []slim_corev1.ServicePort{{Name: "http", Port: 80, Protocol: slim_corev1.ProtocolTCP}},
		},
	}
	export := &mcsapiv1alpha1.ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "web", CreationTimestamp: created}}
	external := service.DeepCopy()
	external.Spec.Type = slim_corev1.ServiceTypeExternalName

	for _, tt := range []struct {
		name    string
		service *slim_corev1.Service
		export  *mcsapiv1alpha1.ServiceExport
		ok      bool
	}{
		{"both", service, export, true},
		{"no service", nil, export, false},
		{"no export", service, nil, false},
		{"neither", nil, nil, false},
		{"external name", external, export, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			row, ok := convertExport("cluster3", tt.service, tt.export)
			require.Equal(t, tt.ok, ok)
			if ok {
				require.Equal(t, "cluster3/foo/web", row.GetKeyName())
				require.Equal(t, created, row.ExportCreationTimestamp)
				require.Equal(t, mcsapiv1alpha1.ClusterSetIP, row.Type)
			}
		})
	}

	var problems []problem
	_, ok := convertServiceExport(&mcsapiv1alpha1.ServiceExport{}, collectProblems(&problems))
	require.False(t, ok)
	require.Equal(t, []problem{problemTimestamp}, problems)
}
