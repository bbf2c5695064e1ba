// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/cilium/cilium/pkg/annotation"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ChangeEndpointIdentity gives the CiliumEndpoint of a pod another identity, as
// its agent does when the pod's labels have changed.
func (c *Clients) ChangeEndpointIdentity(ctx context.Context, e *wire.Endpoint, labels map[string]string) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"identity": ciliumv2.EndpointIdentity{ID: int64(e.Identity), Labels: labelList(labels)},
	}})
	if err != nil {
		return fmt.Errorf("changing CiliumEndpoint %s/%s: %w", e.Namespace, e.Pod, err)
	}
	if _, err := c.Cilium.CiliumV2().CiliumEndpoints(e.Namespace).Patch(ctx, e.Pod, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("changing CiliumEndpoint %s/%s: %w", e.Namespace, e.Pod, err)
	}
	return nil
}

// CreatePod creates a Pod that no kubelet runs, of one container.
func (c *Clients) CreatePod(ctx context.Context, namespace, name string, labels, annotations map[string]string) error {
	_, err := c.Kubernetes.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, Annotations: annotations},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "registry.example/" + name + ":1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: backendPort}},
		}}},
	}, metav1.CreateOptions{})
	return creating("Pod", namespace+"/"+name, err)
}

// DeletePod deletes a Pod at once.
func (c *Clients) DeletePod(ctx context.Context, namespace, name string) error {
	if err := c.Kubernetes.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}); err != nil {
		return fmt.Errorf("deleting Pod %s/%s: %w", namespace, name, err)
	}
	return nil
}

// DeleteIdentity deletes a CiliumIdentity, as upstream's operator does once no
// endpoint uses it.
func (c *Clients) DeleteIdentity(ctx context.Context, name string) error {
	if err := c.Cilium.CiliumV2().CiliumIdentities().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting CiliumIdentity %s: %w", name, err)
	}
	return nil
}

// servicePort and backendPort are those of every service here.
const servicePort, backendPort = 80, 8080

// CreateService creates a Service with a selector. Its cluster IP is the API
// server's to choose.
func (c *Clients) CreateService(ctx context.Context, namespace, name string) error {
	return c.createService(ctx, namespace, name, nil)
}

// CreateGlobalService creates one that other clusters share.
func (c *Clients) CreateGlobalService(ctx context.Context, namespace, name string) error {
	return c.createService(ctx, namespace, name, map[string]string{annotation.GlobalService: "true"})
}

func (c *Clients) createService(ctx context.Context, namespace, name string, annotations map[string]string) error {
	_, err := c.Kubernetes.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app.kubernetes.io/name": name},
			Ports:    []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: servicePort}},
		},
	}, metav1.CreateOptions{})
	return creating("Service", namespace+"/"+name, err)
}

// DeleteService deletes a Service.
func (c *Clients) DeleteService(ctx context.Context, namespace, name string) error {
	if err := c.Kubernetes.CoreV1().Services(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting Service %s/%s: %w", namespace, name, err)
	}
	return nil
}

// CreateBackends creates the one EndpointSlice of a Service, of its name.
func (c *Clients) CreateBackends(ctx context.Context, namespace, name string, backends []netip.Addr) error {
	_, err := c.Kubernetes.DiscoveryV1().EndpointSlices(namespace).Create(ctx, backendsOf(namespace, name, backends), metav1.CreateOptions{})
	return creating("EndpointSlice", namespace+"/"+name, err)
}

// ChangeBackends replaces the backends of a Service, as the controller of
// EndpointSlices does.
func (c *Clients) ChangeBackends(ctx context.Context, namespace, name string, backends []netip.Addr) error {
	if _, err := c.Kubernetes.DiscoveryV1().EndpointSlices(namespace).Update(ctx, backendsOf(namespace, name, backends), metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("changing EndpointSlice %s/%s: %w", namespace, name, err)
	}
	return nil
}

// DeleteBackends deletes the EndpointSlice of a Service.
func (c *Clients) DeleteBackends(ctx context.Context, namespace, name string) error {
	if err := c.Kubernetes.DiscoveryV1().EndpointSlices(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting EndpointSlice %s/%s: %w", namespace, name, err)
	}
	return nil
}

// backendsOf is an EndpointSlice as the controller of EndpointSlices makes it.
func backendsOf(namespace, name string, backends []netip.Addr) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: name,
			discoveryv1.LabelManagedBy:   "endpointslice-controller.k8s.io",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(backendPort)),
		}},
	}
	for _, backend := range backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{backend.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
		})
	}
	return slice
}
