// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	"github.com/cilium/cilium/pkg/k8s/client"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// kind is one kind of object that is read, and where it goes. Both sources work
// from it: the API server through listWatch, manifests through newObject.
type kind struct {
	schema.GroupVersionKind
	namespaced bool
	// selector chooses the objects of this kind that count.
	selector  labels.Selector
	newObject func() runtime.Object
	// listWatch fails only if the clientset's configuration is impossible.
	listWatch func(client.Clientset, labels.Selector) (*cache.ListWatch, error)
	// custom kinds are defined by a CRD, which may be installed after we start.
	custom bool
	// optional: without its CRD the kind counts as listed, and empty.
	optional bool
	// problems are what may be wrong with an object, beside problemType.
	problems []problem

	store cache.ReflectorStore
}

// The kinds, without what they depend on: selector and store.
var (
	ciliumNodeKind = kind{
		GroupVersionKind: ciliumv2.SchemeGroupVersion.WithKind("CiliumNode"),
		custom:           true,
		problems:         []problem{problemAddress},
		newObject:        func() runtime.Object { return &ciliumv2.CiliumNode{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.CiliumV2().CiliumNodes(), s)
		},
	}
	ciliumIdentityKind = kind{
		GroupVersionKind: ciliumv2.SchemeGroupVersion.WithKind("CiliumIdentity"),
		custom:           true,
		problems:         []problem{problemName, problemLabels},
		newObject:        func() runtime.Object { return &ciliumv2.CiliumIdentity{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.CiliumV2().CiliumIdentities(), s)
		},
	}
	ciliumEndpointKind = kind{
		GroupVersionKind: ciliumv2.SchemeGroupVersion.WithKind("CiliumEndpoint"),
		custom:           true,
		namespaced:       true,
		problems:         []problem{problemAddress},
		newObject:        func() runtime.Object { return &ciliumv2.CiliumEndpoint{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.CiliumV2().CiliumEndpoints(metav1.NamespaceAll), s)
		},
	}
	ciliumEndpointSliceKind = kind{
		GroupVersionKind: ciliumv2alpha1.SchemeGroupVersion.WithKind("CiliumEndpointSlice"),
		custom:           true,
		problems:         []problem{problemAddress, problemNetworking},
		newObject:        func() runtime.Object { return &ciliumv2alpha1.CiliumEndpointSlice{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.CiliumV2alpha1().CiliumEndpointSlices(), s)
		},
	}
	namespaceKind = kind{
		GroupVersionKind: slim_corev1.SchemeGroupVersion.WithKind("Namespace"),
		newObject:        func() runtime.Object { return &slim_corev1.Namespace{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.Slim().CoreV1().Namespaces(), s)
		},
	}
	// podKind is a pod's metadata, from wherever.
	podKind = kind{
		GroupVersionKind: slim_corev1.SchemeGroupVersion.WithKind("Pod"),
		namespaced:       true,
		problems:         []problem{problemSetting},
		newObject:        func() runtime.Object { return &metav1.PartialObjectMetadata{} },
		listWatch:        listWatchOfPods,
	}
	serviceKind = kind{
		GroupVersionKind: slim_corev1.SchemeGroupVersion.WithKind("Service"),
		namespaced:       true,
		newObject:        func() runtime.Object { return &slim_corev1.Service{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.Slim().CoreV1().Services(metav1.NamespaceAll), s)
		},
	}
	endpointSliceKind = kind{
		GroupVersionKind: slim_discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
		namespaced:       true,
		problems:         []problem{problemAddress},
		newObject:        func() runtime.Object { return &slim_discoveryv1.EndpointSlice{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.Slim().DiscoveryV1().EndpointSlices(metav1.NamespaceAll), s)
		},
	}
	serviceExportKind = kind{
		GroupVersionKind: mcsapiv1alpha1.SchemeGroupVersion.WithKind("ServiceExport"),
		custom:           true,
		optional:         true,
		namespaced:       true,
		problems:         []problem{problemTimestamp},
		newObject:        func() runtime.Object { return &mcsapiv1alpha1.ServiceExport{} },
		listWatch: func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
			return listWatchOf(cs.MulticlusterV1alpha1().ServiceExports(metav1.NamespaceAll), s)
		},
	}
)

// knownKinds are all kinds that some configuration reads.
var knownKinds = []*kind{
	&namespaceKind, &podKind, &ciliumIdentityKind, &ciliumNodeKind, &ciliumEndpointKind, &ciliumEndpointSliceKind,
	&serviceKind, &endpointSliceKind, &serviceExportKind,
}

// reading is the kind with what a configuration adds to it.
func (k kind) reading(selector labels.Selector, store cache.ReflectorStore) *kind {
	k.selector, k.store = selector, store
	return &k
}

// typedClient is what all generated clients have in common.
type typedClient[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func listWatchOf[L runtime.Object](typed typedClient[L], selector labels.Selector) (*cache.ListWatch, error) {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.LabelSelector = selector.String()
			return typed.List(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.LabelSelector = selector.String()
			return typed.Watch(ctx, opts)
		},
	}, nil
}
