// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client"
	typedv2 "github.com/cilium/cilium/pkg/k8s/client/clientset/versioned/typed/cilium.io/v2"
	"github.com/cilium/hive/job"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// writers is upstream's client with one that notes what the agent writes of
// CiliumEndpoints. Upstream's synchronizer of endpoints is private to its cell, so that
// it can have no client of its own.
type writers struct {
	client.Clientset
	written *written
}

func (s *standins) client(upstream client.Clientset) client.Clientset {
	if !upstream.IsEnabled() {
		return upstream
	}
	s.jobs.Add(job.Timer("check-written-endpoints", func(ctx context.Context) error {
		s.written.check(ctx, time.Now().Add(-writtenInterval), func(ctx context.Context, p pod) (*ciliumv2.CiliumEndpoint, error) {
			return upstream.CiliumV2().CiliumEndpoints(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
		})
		return nil
	}, writtenInterval, job.WithTrigger(s.written.doubt)))
	return writers{upstream, s.written}
}

func (w writers) CiliumV2() typedv2.CiliumV2Interface {
	return writersV2{w.Clientset.CiliumV2(), w.written}
}

type writersV2 struct {
	typedv2.CiliumV2Interface
	written *written
}

func (w writersV2) CiliumEndpoints(namespace string) typedv2.CiliumEndpointInterface {
	return endpointClient{w.CiliumV2Interface.CiliumEndpoints(namespace), namespace, w.written}
}

// endpointClient notes what the API server says of single endpoints. What the agent asks
// for or writes one by one are those of its own pods.
type endpointClient struct {
	typedv2.CiliumEndpointInterface
	namespace string
	written   *written
}

func (c endpointClient) note(endpoint *ciliumv2.CiliumEndpoint, err error) (*ciliumv2.CiliumEndpoint, error) {
	if err == nil {
		c.written.add(endpoint)
	}
	return endpoint, err
}

func (c endpointClient) Create(ctx context.Context, endpoint *ciliumv2.CiliumEndpoint, opts metav1.CreateOptions) (*ciliumv2.CiliumEndpoint, error) {
	return c.note(c.CiliumEndpointInterface.Create(ctx, endpoint, opts))
}

func (c endpointClient) Update(ctx context.Context, endpoint *ciliumv2.CiliumEndpoint, opts metav1.UpdateOptions) (*ciliumv2.CiliumEndpoint, error) {
	return c.note(c.CiliumEndpointInterface.Update(ctx, endpoint, opts))
}

func (c endpointClient) Get(ctx context.Context, name string, opts metav1.GetOptions) (*ciliumv2.CiliumEndpoint, error) {
	return c.note(c.CiliumEndpointInterface.Get(ctx, name, opts))
}

func (c endpointClient) Patch(ctx context.Context, name string, patch types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*ciliumv2.CiliumEndpoint, error) {
	return c.note(c.CiliumEndpointInterface.Patch(ctx, name, patch, data, opts, subresources...))
}

// Delete forgets the endpoint whether or not it succeeds: its pod has gone from here.
func (c endpointClient) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	err := c.CiliumEndpointInterface.Delete(ctx, name, opts)
	var uid *types.UID
	if opts.Preconditions != nil {
		uid = opts.Preconditions.UID
	}
	c.written.forget(pod{namespace: c.namespace, name: name}, uid)
	return err
}
