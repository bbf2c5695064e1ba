// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"path"
	"testing"
	"time"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/clustermesh/store"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

func globalService() *Service {
	s := store.NewClusterService("web", "shop")
	s.Cluster, s.ClusterID = "east", 7
	s.Shared, s.IncludeExternal = true, true
	s.Frontends["172.16.0.1"] = store.PortConfiguration{"http": {Protocol: loadbalancer.TCP, Port: 80}}
	s.Backends["10.1.2.3"] = store.PortConfiguration{"http": {Protocol: loadbalancer.TCP, Port: 8080}}
	s.Backends["fd00::1"] = store.PortConfiguration{"http": {Protocol: loadbalancer.TCP, Port: 8080}}
	s.Hostnames["10.1.2.3"] = "web-0"
	s.Zones["10.1.2.3"] = store.BackendZone{Zone: "a", ForZones: []store.ForZone{{Name: "a"}}}
	s.Labels["app"] = "<web>"
	s.Selector["app"] = "web"
	return &s
}

func TestServiceAsUpstream(t *testing.T) {
	bare := store.NewClusterService("web", "shop")
	bare.Cluster = "default" // a cluster in no mesh has ID 0
	for name, s := range map[string]*Service{"full": globalService(), "bare": &bare} {
		t.Run(name, func(t *testing.T) {
			want, err := s.Marshal()
			require.NoError(t, err)
			got, err := MarshalService(s)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
			require.Equal(t, path.Join(store.ServiceStorePrefix, s.GetKeyName()),
				StatePrefix(Services, s.Cluster)+ServiceKey(s.Namespace, s.Name))

			ours, err := DecodeService("shop/web", got)
			require.NoError(t, err)
			var theirs Service
			require.NoError(t, theirs.Unmarshal("shop/web", got))
			require.Equal(t, &theirs, ours)
			require.Equal(t, s, ours)
		})
	}
}

func TestDecodeServiceRefusals(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		reason      Reason
	}{
		{"empty", ``, ReasonMalformed},
		{"null", `null`, ReasonMalformed},
		{"no JSON", `{"name":`, ReasonMalformed},
		{"no cluster", `{"namespace":"shop","name":"web"}`, ReasonMalformed},
		{"no namespace", `{"cluster":"east","name":"web"}`, ReasonMalformed},
		{"no name", `{"cluster":"east","namespace":"shop"}`, ReasonMalformed},
		{"other name", `{"cluster":"east","namespace":"shop","name":"db"}`, ReasonKeyMismatch},
		{"slash moved", `{"cluster":"east","namespace":"shop/web","name":"x"}`, ReasonKeyMismatch},
		{"frontend is a word", `{"cluster":"east","namespace":"shop","name":"web","frontends":{"x":{}}}`, ReasonMalformed},
		{"backend is a word", `{"cluster":"east","namespace":"shop","name":"web","backends":{"x":{}}}`, ReasonMalformed},
		{"port null", `{"cluster":"east","namespace":"shop","name":"web","backends":{"10.0.0.1":{"http":null}}}`, ReasonMalformed},
		{"port too large", `{"cluster":"east","namespace":"shop","name":"web","backends":{"10.0.0.1":{"http":{"Port":65536}}}}`, ReasonMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeService("shop/web", []byte(tc.value))
			requireRefusal(t, err, Services, "shop/web", tc.reason)
		})
	}
}

func serviceExport() *ServiceExport {
	app, internal, distribution := "kubernetes.io/h2c", corev1.ServiceInternalTrafficPolicyLocal, corev1.ServiceTrafficDistributionPreferClose
	seconds := int32(60)
	return &ServiceExport{
		Cluster: "east", Namespace: "shop", Name: "web",
		Annotations: map[string]string{"a": "1"}, Labels: map[string]string{"b": "<2>"},
		ExportCreationTimestamp: metav1.NewTime(time.Date(2025, 11, 20, 8, 56, 0, 0, time.UTC).Local()),
		Ports:                   []mcsapiv1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, AppProtocol: &app, Port: 80}},
		Type:                    mcsapiv1alpha1.ClusterSetIP,
		SessionAffinity:         corev1.ServiceAffinityClientIP,
		SessionAffinityConfig:   &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}},
		IPFamilies:              []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		InternalTrafficPolicy:   &internal,
		TrafficDistribution:     &distribution,
	}
}

func TestServiceExportAsUpstream(t *testing.T) {
	e := serviceExport()
	got, err := MarshalServiceExport(e)
	require.NoError(t, err)
	require.Equal(t, serviceExport(), e, "a shared row must not be modified")

	want, err := serviceExport().Marshal()
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	require.Equal(t, path.Join(mcsapitypes.ServiceExportStorePrefix, e.GetKeyName()),
		StatePrefix(ServiceExports, e.Cluster)+ServiceKey(e.Namespace, e.Name))

	back, err := DecodeServiceExport("shop/web", got)
	require.NoError(t, err)
	require.Equal(t, e, back)

	// What older versions write has only the names in capitals.
	old, err := DecodeServiceExport("shop/web", []byte(`{"cluster":"east","namespace":"shop","name":"web","Labels":{"b":"2"},`+
		`"exportCreationTimestamp":"2025-11-20T08:56:00Z","ports":[],"type":"Headless","sessionAffinity":"None"}`))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"b": "2"}, old.Labels)
}

func TestDecodeServiceExportRefusals(t *testing.T) {
	const rest = `"ports":[],"type":"ClusterSetIP","sessionAffinity":"None"}`
	const created = `"exportCreationTimestamp":"2025-11-20T08:56:00Z",`
	for _, tc := range []struct {
		name, value string
		reason      Reason
	}{
		{"empty", ``, ReasonMalformed},
		{"null", `null`, ReasonMalformed},
		{"no cluster", `{"namespace":"shop","name":"web",` + created + rest, ReasonMalformed},
		{"no time", `{"cluster":"east","namespace":"shop","name":"web",` + rest, ReasonMalformed},
		{"time after the calendar", `{"cluster":"east","namespace":"shop","name":"web","exportCreationTimestamp":"9999-12-31T23:59:59-23:59",` + rest, ReasonMalformed},
		{"type unknown", `{"cluster":"east","namespace":"shop","name":"web",` + created + `"type":"X","sessionAffinity":"None"}`, ReasonMalformed},
		{"other name", `{"cluster":"east","namespace":"shop","name":"db",` + created + rest, ReasonKeyMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeServiceExport("shop/web", []byte(tc.value))
			requireRefusal(t, err, ServiceExports, "shop/web", tc.reason)
		})
	}
}

func FuzzDecodeService(f *testing.F) {
	value, err := MarshalService(globalService())
	require.NoError(f, err)
	f.Add("shop/web", value)
	f.Add("shop/web", []byte(`{"cluster":"east","namespace":"shop","name":"web","backends":null,"hostnames":null,"labels":null}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s, err := DecodeService(key, value)
		if err != nil {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal)
			return
		}
		again, err := MarshalService(s)
		require.NoError(t, err)
		back, err := DecodeService(key, again)
		require.NoError(t, err)
		// Compared as bytes: a map that is null and one that is absent differ in
		// memory only.
		twice, err := MarshalService(back)
		require.NoError(t, err)
		require.Equal(t, string(again), string(twice))
	})
}

func FuzzDecodeServiceExport(f *testing.F) {
	value, err := MarshalServiceExport(serviceExport())
	require.NoError(f, err)
	f.Add("shop/web", value)
	f.Add("shop/web", []byte(`{"cluster":"east","namespace":"shop","name":"web","Labels":{"b":"2"},"labels":{},`+
		`"exportCreationTimestamp":"0001-01-01T00:00:00+10:00","type":"Headless","sessionAffinity":"None"}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e, err := DecodeServiceExport(key, value)
		if err != nil {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal)
			return
		}
		again, err := MarshalServiceExport(e)
		require.NoError(t, err)
		back, err := DecodeServiceExport(key, again)
		require.NoError(t, err, "%s", again)
		twice, err := MarshalServiceExport(back)
		require.NoError(t, err)
		require.Equal(t, string(again), string(twice))
	})
}
