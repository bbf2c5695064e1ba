// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/cilium/pkg/k8s/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// newWorkloads is the reflector of pods. It keeps nothing of those that say nothing,
// which are most: in a cluster of 100,000 pods with 5,000 that opt in it remembers 5,000.
// Nor does it remember those that are deleted, whose last word may still be in the table.
func newWorkloads(writer *state.Writer, problems *problems, metrics *Metrics) *reflector[state.Workload, string] {
	r := newReflector(podKind.Kind, problems, metrics, convertPod, applyWorkload(problems))
	table := writer.Tables().Workloads
	r.keepingNothingOf(
		func(w state.Workload) bool { return w.IsZero() },
		func(object string) bool {
			namespace, pod, _ := strings.Cut(object, "/")
			_, _, found := table.Get(writer.ReadTxn(), state.WorkloadByPod(namespace, pod))
			return found
		})
	r.transform = stripPod
	return r
}

// convertPod gives what a pod says of itself, zero but for its name if that is nothing.
// The object is metadata alone, or a pod of whatever type. In which network the pod is,
// and whether it has ended, makes no difference: without an endpoint there is nothing
// to decide.
func convertPod(obj metav1.Object, _ report) (state.Workload, bool) {
	return state.Workload{
		Namespace: obj.GetNamespace(),
		Pod:       obj.GetName(),
		Workload:  filter.ParseWorkload(obj.GetLabels(), obj.GetAnnotations()),
	}, true
}

// applyWorkload writes the row of a pod. What it remembers is the Problem: a pod
// changes its status many times in its life, and is reported once for each fault.
//
// A pod that is gone leaves its last word to its endpoints. One that is silent is an
// operator's change, which takes effect at once, or another one of the same name.
func applyWorkload(problems *problems) apply[state.Workload, string] {
	return func(tx *state.Txn, c change[state.Workload], old memory[string]) string {
		if c.deleted {
			namespace, pod, _ := strings.Cut(c.object, "/")
			if c.said == silent {
				tx.DeleteWorkload(namespace, pod)
			} else {
				tx.ReleaseWorkload(namespace, pod)
			}
			return ""
		}
		if c.rows.Problem != "" && c.rows.Problem != old.value {
			problems.of(c.object)(problemSetting, errors.New(c.rows.Problem))
		}
		tx.UpsertWorkload(c.rows)
		return c.rows.Problem
	}
}

// podSettings are the labels and annotations that convertPod reads.
var podSettings = [...]string{filter.SyncKey, filter.ScopeKey}

// stripPod leaves of a pod's metadata what is read. client-go holds all pods while it
// gathers a streamed list.
func stripPod(obj any) (any, error) {
	pod, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	pod.ObjectMeta = metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, ResourceVersion: pod.ResourceVersion,
		Labels: settingsOf(pod.Labels), Annotations: settingsOf(pod.Annotations),
	}
	return pod, nil
}

func settingsOf(all map[string]string) (settings map[string]string) {
	for _, key := range podSettings {
		if value, ok := all[key]; ok {
			if settings == nil {
				settings = make(map[string]string, len(podSettings))
			}
			settings[key] = value
		}
	}
	return settings
}

// listWatchOfPods lists and watches the metadata of all pods. Neither list nor watch
// can be narrowed: the server selects by labels, and the settings may be annotations.
// It takes permission to list and watch pods, whatever is asked of them.
//
// What it costs, by BenchmarkPodReads: 5,000 pods of a Deployment on a real API server,
// streamed and so not compressed, of which one in twenty says something.
//
//	for each pod                          metadata   slim     full
//	bytes received, at start              2,930      4,060    4,060
//	bytes received, for each change       3,050      4,180    4,180
//	heap while the list is gathered       0.4 kB     3.3 kB   10.5 kB
//	heap from then on                     40 B       40 B     40 B
//	CPU, at start (on a busy machine)     25 µs      36 µs    57 µs
//
// Of the metadata 81 % are managed fields, which the server can't leave out: they are
// received, decoded and thrown away. Without stripPod the list takes 4.3 kB of heap for
// each pod. A pod changes some times in its life, mostly its status, and each change is
// sent. A real pod's specification is larger than the benchmark's, its metadata is not.
func listWatchOfPods(cs client.Clientset, selector labels.Selector) (*cache.ListWatch, error) {
	upstream, ok := cs.CoreV1().RESTClient().(*rest.RESTClient)
	if !ok || upstream == nil || upstream.Client == nil {
		// Upstream's fake clientset has no connection that metadata could be asked for
		// over: whole pods, of which no more is read.
		return listWatchOf(cs.Slim().CoreV1().Pods(metav1.NamespaceAll), selector)
	}
	// Over upstream's own connections, which its heartbeat watches over, and which change
	// to another API server when one fails. A transport of our own made from the same
	// configuration would be neither, and would take the place of upstream's in what
	// changes servers.
	client, err := metadata.NewForConfigAndClient(cs.RestConfig(), upstream.Client)
	if err != nil {
		return nil, fmt.Errorf("creating a client for metadata: %w", err)
	}
	return listWatchOf(podMetadata{client.Resource(podResource)}, selector)
}

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// podMetadata is the metadata client as the typed ones are.
type podMetadata struct{ pods metadata.Getter }

func (p podMetadata) List(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	return p.pods.List(ctx, opts)
}

func (p podMetadata) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	return p.pods.Watch(ctx, opts)
}
