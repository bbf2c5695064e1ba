// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/cilium/api/v1/models"
	daemonk8s "github.com/cilium/cilium/daemon/k8s"
	"github.com/cilium/cilium/pkg/endpoint"
	endpointid "github.com/cilium/cilium/pkg/endpoint/id"
	"github.com/cilium/cilium/pkg/ipam"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Pod is a pod on the agent's node, with an endpoint that has no interface.
type Pod struct {
	Namespace, Name string
	Address         netip.Addr
	Endpoint        *endpoint.Endpoint
}

// AddPod makes a pod at the API server and an endpoint of it at the agent, as a scheduler
// and the CNI would. The namespace has to be there. What the agent then does, it does by
// itself: it allocates an identity, and creates the CiliumEndpoint.
func (a *Agent) AddPod(namespace, name string, labels map[string]string) *Pod {
	a.t.Helper()
	ctx := a.t.Context()
	node, err := a.LocalNode.Get(ctx)
	require.NoError(a.t, err)
	pods := a.config.Server.Kubernetes.CoreV1().Pods(namespace)
	object, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName:   a.config.Node,
			Containers: []corev1.Container{{Name: "main", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	require.NoError(a.t, err, "creating pod %s/%s", namespace, name)

	address, _, err := a.IPAM.AllocateNext("ipv4", namespace+"/"+name, ipam.PoolDefault())
	require.NoError(a.t, err, "allocating an address for pod %s/%s", namespace, name)
	pod := &Pod{Namespace: namespace, Name: name, Address: netip.MustParseAddr(address.IP.String())}
	object.Status = corev1.PodStatus{
		HostIP: node.GetNodeIP(false).String(),
		PodIP:  pod.Address.String(), PodIPs: []corev1.PodIP{{IP: pod.Address.String()}},
	}
	_, err = pods.UpdateStatus(ctx, object, metav1.UpdateOptions{})
	require.NoError(a.t, err, "giving pod %s/%s its address", namespace, name)

	// A CNI comes with a pod that its kubelet has long told of.
	require.Eventually(a.t, func() bool {
		_, _, ok := a.LocalPods.Get(a.DB.ReadTxn(), daemonk8s.PodByName(namespace, name))
		return ok
	}, startTimeout, time.Millisecond, "the agent doesn't see pod %s/%s", namespace, name)
	pod.Endpoint, _, err = a.EndpointAPI.CreateEndpoint(ctx, &models.EndpointChangeRequest{
		ContainerID: namespace + "-" + name, ContainerInterfaceName: "eth0",
		K8sNamespace: namespace, K8sPodName: name, K8sUID: string(object.UID),
		State:      ptr.To(models.EndpointStateWaitingDashForDashIdentity),
		Addressing: &models.AddressPair{IPv4: pod.Address.String()},
		Properties: map[string]any{
			endpoint.PropertySkipBPFRegeneration: true, endpoint.PropertyFakeEndpoint: true,
			// There is no map to put its policy into: what is computed is what is in force.
			endpoint.PropertySkipBPFPolicy: true,
		},
	})
	require.NoError(a.t, err, "creating the endpoint of pod %s/%s", namespace, name)
	a.pods = append(a.pods, pod)
	return pod
}

// DeletePod takes the pod and its endpoint away; the agent deletes the CiliumEndpoint.
func (a *Agent) DeletePod(pod *Pod) {
	a.t.Helper()
	a.removeEndpoint(pod)
	a.pods = slices.DeleteFunc(a.pods, func(other *Pod) bool { return other == pod })
	err := a.config.Server.Kubernetes.CoreV1().Pods(pod.Namespace).Delete(a.t.Context(), pod.Name,
		metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
	require.NoError(a.t, err, "deleting pod %s/%s", pod.Namespace, pod.Name)
}

func (a *Agent) removeEndpoint(pod *Pod) {
	a.t.Helper()
	_, err := a.EndpointAPI.DeleteEndpoint(endpointid.NewIPPrefixID(pod.Address))
	require.NoError(a.t, err, "deleting the endpoint of pod %s/%s", pod.Namespace, pod.Name)
}

// removeEndpoints removes all endpoints, and waits until what ran for each has ended:
// the last that it does is to delete the CiliumEndpoint.
func (a *Agent) removeEndpoints() {
	a.t.Helper()
	for _, pod := range a.pods {
		a.removeEndpoint(pod)
	}
	for _, pod := range a.pods {
		endpoints := a.config.Server.Cilium.CiliumV2().CiliumEndpoints(pod.Namespace)
		require.Eventually(a.t, func() bool {
			// Not the test's context, which has ended when this is its clean-up.
			_, err := endpoints.Get(context.Background(), pod.Name, metav1.GetOptions{})
			if err == nil && pod.Endpoint.GetCiliumEndpointUID() == "" {
				// It was removed while it was created: upstream's agent leaves it to the operator.
				_ = endpoints.Delete(context.Background(), pod.Name, metav1.DeleteOptions{}) // or is asked again
			}
			return k8serrors.IsNotFound(err)
		}, startTimeout, 10*time.Millisecond, "what runs for the endpoint of %s/%s doesn't end", pod.Namespace, pod.Name)
	}
	a.pods = nil
}
