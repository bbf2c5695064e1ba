// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// AddNode makes a Kubernetes node for an agent to run on, as its kubelet and the
// controller of pod CIDRs would.
func AddNode(t testing.TB, server *kubeapi.Server, name string, address netip.Addr, podCIDR netip.Prefix) {
	t.Helper()
	nodes := server.Kubernetes.CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR.String(), PodCIDRs: []string{podCIDR.String()}},
	}, metav1.CreateOptions{})
	require.NoError(t, err, "creating node %s", name)
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: address.String()},
		{Type: corev1.NodeHostName, Address: name},
	}
	_, err = nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	require.NoError(t, err, "giving node %s its address", name)
}
