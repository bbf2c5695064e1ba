// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"sync/atomic"
	"time"

	identitycell "github.com/cilium/cilium/pkg/identity/cache/cell"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client/clientset/versioned"
	typedv2 "github.com/cilium/cilium/pkg/k8s/client/clientset/versioned/typed/cilium.io/v2"
	"github.com/cilium/cilium/pkg/kvstore"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// allocator is upstream's allocator of identities, with another client: it lists and
// watches what is served, and does all else at the API server.
type allocator struct {
	identitycell.CachingIdentityAllocator
	served     *served
	identities *identities
	client     atomic.Pointer[versioned.Interface]
}

// InitIdentityAllocator is called once in the agent's start.
func (a *allocator) InitIdentityAllocator(client versioned.Interface, store kvstore.Client) <-chan struct{} {
	a.client.Store(&client)
	return a.CachingIdentityAllocator.InitIdentityAllocator(clientset{client, a}, store)
}

// check is a timer's job.
func (a *allocator) check(ctx context.Context) error {
	client := a.client.Load()
	if client == nil {
		return nil
	}
	a.identities.check(ctx, time.Now().Add(-createdInterval), func(ctx context.Context, name string) error {
		_, err := (*client).CiliumV2().CiliumIdentities().Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return nil
}

type clientset struct {
	versioned.Interface
	a *allocator
}

func (c clientset) CiliumV2() typedv2.CiliumV2Interface {
	return ciliumClient{c.Interface.CiliumV2(), c.a}
}

type ciliumClient struct {
	typedv2.CiliumV2Interface
	a *allocator
}

func (c ciliumClient) CiliumIdentities() typedv2.CiliumIdentityInterface {
	return identityClient{c.CiliumV2Interface.CiliumIdentities(), c.a}
}

type identityClient struct {
	typedv2.CiliumIdentityInterface
	a *allocator
}

// Create creates an identity at the API server; readers here have it at once.
func (c identityClient) Create(ctx context.Context, identity *ciliumv2.CiliumIdentity, opts metav1.CreateOptions) (*ciliumv2.CiliumIdentity, error) {
	created, err := c.CiliumIdentityInterface.Create(ctx, identity, opts)
	if err == nil {
		c.a.identities.add(created)
	}
	return created, err
}

// List gives what is served. Upstream asks for all of it.
func (c identityClient) List(ctx context.Context, _ metav1.ListOptions) (*ciliumv2.CiliumIdentityList, error) {
	objects, revision, err := c.a.served.list(ctx)
	if err != nil {
		return nil, err
	}
	list := &ciliumv2.CiliumIdentityList{ListMeta: metav1.ListMeta{ResourceVersion: revision}, Items: make([]ciliumv2.CiliumIdentity, 0, len(objects))}
	for _, object := range objects {
		list.Items = append(list.Items, *object.(*ciliumv2.CiliumIdentity))
	}
	return list, nil
}

// Watch goes on from List.
func (c identityClient) Watch(_ context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	return c.a.served.watch(opts)
}
