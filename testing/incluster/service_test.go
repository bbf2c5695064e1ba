// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	cacheService = "cache"
	cachePort    = 2379
)

// TestService has an agent find a cache by the name of its Service: at the API server,
// in what it kept of that while there is none, and in what the cache itself says. A
// replica that is back is gone back to.
func TestService(t *testing.T) {
	r := newRig(t)
	s := &scene{T: t, rig: r}
	addresses := map[string]*mesh.Cache{}
	for i := range replicaCount {
		replica := r.cluster.NewCacheFrom(t, r.flags())
		replica.Start()
		s.replicas = append(s.replicas, replica)
		addresses[net.JoinHostPort(backendAddress(i), strconv.Itoa(cachePort))] = replica
	}
	r.createCacheService(t)
	r.setCacheBackends(t, 0, 1)
	s.agent = r.cluster.NewLocalAgent(t, "node-1", nil, nil, r.flags(), mesh.Flags{
		"kvstore-opt":                        fmt.Sprintf("etcd.address=http://%s.%s.svc", cacheService, namespace),
		"incluster-cache-rebalance-interval": "500ms",
	})
	s.agent.FollowEach(t)
	s.agent.Backends = addresses
	s.agent.Start()
	s.requireTruth()
	require.Equal(t, everywhere(1+replicaCount), s.watches(t))
	reads := func() (address string) {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			row := s.datastore(c)
			require.True(c, row.Connected)
			require.Contains(c, addresses, row.Backend)
			address = row.Backend
		}, patience, tick)
		return address
	}
	first := reads()
	preferred := addresses[first]
	index := 0
	if preferred == s.replicas[1] {
		index = 1
	}

	// No API server: what an earlier process had from there is still good.
	require.NoError(t, r.Kill())
	s.agent.Restart()
	require.Equal(t, first, reads())
	require.NoError(t, r.Restart(t.Context()))
	s.arrives()

	// The replica goes, and its address from the Service.
	preferred.Kill()
	r.setCacheBackends(t, 1-index)
	s.arrives()
	require.NotEqual(t, first, reads())

	// It is back, and the agent hears of it from the other one.
	preferred.Start()
	r.setCacheBackends(t, 0, 1)
	require.Eventually(t, func() bool { return reads() == first }, patience, tick)
	s.arrives()
	s.requireTruth()
	s.requireUnbroken()
}

func backendAddress(i int) string { return fmt.Sprintf("172.20.0.%d", 11+i) }

// createCacheService creates the Service, without backends.
func (r *rig) createCacheService(t *testing.T) {
	t.Helper()
	_, err := r.Kubernetes.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: cacheService},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone,
			Ports:     []corev1.ServicePort{{Name: "etcd", Port: cachePort}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = r.Kubernetes.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), cacheSlice(), metav1.CreateOptions{})
	require.NoError(t, err)
}

// setCacheBackends has these replicas be ready, and no others.
func (r *rig) setCacheBackends(t *testing.T, ready ...int) {
	t.Helper()
	slice := cacheSlice()
	for _, i := range ready {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{backendAddress(i)}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	_, err := r.Kubernetes.DiscoveryV1().EndpointSlices(namespace).Update(t.Context(), slice, metav1.UpdateOptions{})
	require.NoError(t, err)
}

func cacheSlice() *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: cacheService, Labels: map[string]string{
			discoveryv1.LabelServiceName: cacheService, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("etcd"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(cachePort))}},
	}
}
