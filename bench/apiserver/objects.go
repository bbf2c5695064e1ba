// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/pkg/k8s"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// CreateNamespace creates a namespace without annotations.
func (c *Clients) CreateNamespace(ctx context.Context, name string) error {
	_, err := c.Kubernetes.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return creating("namespace", name, err)
}

// CreateNode creates a CiliumNode.
func (c *Clients) CreateNode(ctx context.Context, n *wire.Node) error {
	node := wire.NodeToUpstream(n).ToCiliumNode()
	node.Spec.BootID = n.BootID
	_, err := c.Cilium.CiliumV2().CiliumNodes().Create(ctx, node, metav1.CreateOptions{})
	return creating("CiliumNode", n.Name, err)
}

// CreateIdentity creates a CiliumIdentity. Its name is the ID in decimal.
func (c *Clients) CreateIdentity(ctx context.Context, name string, labels map[string]string) error {
	_, err := c.Cilium.CiliumV2().CiliumIdentities().Create(ctx, &ciliumv2.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: name}, SecurityLabels: labels,
	}, metav1.CreateOptions{})
	return creating("CiliumIdentity", name, err)
}

// CreateEndpoint creates a CiliumEndpoint, with what an agent writes beside what
// is exported. The labels are those of its identity.
func (c *Clients) CreateEndpoint(ctx context.Context, e *wire.Endpoint, labels map[string]string) error {
	_, err := c.Cilium.CiliumV2().CiliumEndpoints(e.Namespace).Create(ctx, endpointOf(e, labels), metav1.CreateOptions{})
	return creating("CiliumEndpoint", e.Namespace+"/"+e.Pod, err)
}

// DeleteEndpoint deletes the CiliumEndpoint of a pod.
func (c *Clients) DeleteEndpoint(ctx context.Context, e *wire.Endpoint) error {
	if err := c.Cilium.CiliumV2().CiliumEndpoints(e.Namespace).Delete(ctx, e.Pod, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting CiliumEndpoint %s/%s: %w", e.Namespace, e.Pod, err)
	}
	return nil
}

// Slice is a CiliumEndpointSlice as it was written last.
type Slice struct {
	object *ciliumv2alpha1.CiliumEndpointSlice
}

// CreateSlice creates a CiliumEndpointSlice. All its endpoints are in the
// namespace.
func (c *Clients) CreateSlice(ctx context.Context, name, namespace string, endpoints []wire.Endpoint) (*Slice, error) {
	object, err := c.Cilium.CiliumV2alpha1().CiliumEndpointSlices().Create(ctx, &ciliumv2alpha1.CiliumEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Namespace: namespace, Endpoints: coresOf(endpoints),
	}, metav1.CreateOptions{})
	return &Slice{object}, creating("CiliumEndpointSlice", name, err)
}

// UpdateSlice replaces the endpoints of a CiliumEndpointSlice, as upstream's
// operator does. There is one call at a time for a slice.
func (c *Clients) UpdateSlice(ctx context.Context, s *Slice, endpoints []wire.Endpoint) error {
	wanted := s.object.DeepCopy()
	wanted.Endpoints = coresOf(endpoints)
	object, err := c.Cilium.CiliumV2alpha1().CiliumEndpointSlices().Update(ctx, wanted, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("changing CiliumEndpointSlice %s: %w", wanted.Name, err)
	}
	s.object = object
	return nil
}

func creating(kind, name string, err error) error {
	if err != nil {
		return fmt.Errorf("creating %s %s: %w", kind, name, err)
	}
	return nil
}

// endpointOf is an endpoint as an agent describes it, some 1.5 KiB.
func endpointOf(e *wire.Endpoint, labels map[string]string) *ciliumv2.CiliumEndpoint {
	return &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: e.Pod, Namespace: e.Namespace},
		Status: ciliumv2.EndpointStatus{
			ID:                  int64(e.Identity),
			ExternalIdentifiers: &models.EndpointIdentifiers{K8sNamespace: e.Namespace, K8sPodName: e.Pod, PodName: e.Namespace + "/" + e.Pod},
			Identity:            &ciliumv2.EndpointIdentity{ID: int64(e.Identity), Labels: labelList(labels)},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: e.Prefix.Addr().String()}}, NodeIP: e.HostIP.String(),
			},
			ServiceAccount: e.ServiceAccount,
			State:          "ready",
		},
	}
}

// labelList are labels as an endpoint has them.
func labelList(labels map[string]string) (list []string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return list
}

// coresOf are endpoints as a slice has them.
func coresOf(endpoints []wire.Endpoint) []ciliumv2alpha1.CoreCiliumEndpoint {
	out := make([]ciliumv2alpha1.CoreCiliumEndpoint, len(endpoints))
	for i := range endpoints {
		out[i] = *k8s.ConvertCEPToCoreCEP(endpointOf(&endpoints[i], nil))
	}
	return out
}
