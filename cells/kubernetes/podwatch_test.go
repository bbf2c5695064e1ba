// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/k8s/client"
	slim_clientset "github.com/cilium/cilium/pkg/k8s/slim/k8s/client/clientset/versioned"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// countedClientset is a clientset whose answers are counted, in bytes. Lists are
// streamed, as watches are, and neither is compressed.
type countedClientset struct {
	client.Clientset // nil: what isn't below isn't asked for

	config *rest.Config
	core   kubernetes.Interface
	slim   slim_clientset.Interface
	bytes  atomic.Int64
}

func (c *countedClientset) CoreV1() typedcorev1.CoreV1Interface { return c.core.CoreV1() }
func (c *countedClientset) Slim() slim_clientset.Interface      { return c.slim }
func (c *countedClientset) RestConfig() *rest.Config            { return rest.CopyConfig(c.config) }

func newCountedClientset(t testing.TB, server *kubeapi.Server) *countedClientset {
	c := &countedClientset{config: rest.CopyConfig(server.RESTConfig)}
	c.config.ContentType = "application/vnd.kubernetes.protobuf"
	c.config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.config.Wrap(func(next http.RoundTripper) http.RoundTripper { return countingTripper{next, &c.bytes} })
	transport, err := rest.HTTPClientFor(c.config)
	require.NoError(t, err)
	t.Cleanup(transport.CloseIdleConnections)
	c.core, err = kubernetes.NewForConfigAndClient(c.config, transport)
	require.NoError(t, err)
	c.slim, err = slim_clientset.NewForConfigAndClient(c.config, transport)
	require.NoError(t, err)
	return c
}

type countingTripper struct {
	http.RoundTripper
	bytes *atomic.Int64
}

func (c countingTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = countingBody{response.Body, c.bytes}
	}
	return response, err
}

type countingBody struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (c countingBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

// createPods makes pods as a Deployment's are once they run: created by the controller,
// completed by the kubelet, with the managed fields of both. One in twenty opts in.
func createPods(t testing.TB, server *kubeapi.Server, count int) {
	pods := server.Kubernetes.CoreV1().Pods("default")
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for n := range count {
		group.Go(func() error {
			pod, err := pods.Create(ctx, deploymentPod(n), metav1.CreateOptions{FieldManager: "kube-controller-manager"})
			if err != nil {
				return err
			}
			pod.Status = runningStatus(n)
			_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{FieldManager: "kubelet"})
			return err
		})
	}
	require.NoError(t, group.Wait())
}

func deploymentPod(n int) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("checkout-6f7d9c5b8d-%05d", n),
			Labels: map[string]string{
				"app.kubernetes.io/name": "checkout", "app.kubernetes.io/instance": "shop", "app.kubernetes.io/version": "1.2.3",
				"pod-template-hash": "6f7d9c5b8d",
			},
			Annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9090",
				"checksum/config": "3b5d5c3712955042212316173ccf37be800d0c0f6a8f9d3c1b1b1d7d1c7d5f3a"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "checkout-6f7d9c5b8d", UID: types.UID("6a1f6f8e-6a55-4b7e-9d0a-0d6a2f0f9b11"),
				Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
			}},
		},
		Spec: corev1.PodSpec{
			NodeName: "worker-1",
			Containers: []corev1.Container{{
				Name: "checkout", Image: "registry.example.com/shop/checkout:1.2.3",
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}},
				Env: []corev1.EnvVar{{Name: "LOG_LEVEL", Value: "info"}, {Name: "DATABASE_URL", Value: "postgres://db.shop.svc:5432/checkout"},
					{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/checkout"}},
			}},
			Volumes: []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "checkout"}}}}},
		},
	}
	if n%20 == 0 {
		pod.Annotations[filter.SyncKey] = "true"
	}
	return pod
}

func runningStatus(n int) corev1.PodStatus {
	now := metav1.Now()
	address := fmt.Sprintf("10.0.%d.%d", n/250, 1+n%250)
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}},
		PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}, StartTime: &now, QOSClass: corev1.PodQOSBurstable,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "checkout", Ready: true, Started: ptr.To(true), Image: "registry.example.com/shop/checkout:1.2.3",
			ImageID:     "registry.example.com/shop/checkout@sha256:3b5d5c3712955042212316173ccf37be800d0c0f6a8f9d3c1b1b1d7d1c7d5f3a",
			ContainerID: "containerd://9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	for _, kind := range []corev1.PodConditionType{"PodReadyToStartContainers", corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	return status
}

// podReads are the ways to learn what pods say, the one that is used first.
var podReads = []struct {
	name      string
	listWatch func(client.Clientset, labels.Selector) (*cache.ListWatch, error)
}{
	{"metadata", listWatchOfPods},
	{"slim", func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
		return listWatchOf(cs.Slim().CoreV1().Pods(metav1.NamespaceAll), s)
	}},
	{"full", func(cs client.Clientset, s labels.Selector) (*cache.ListWatch, error) {
		return listWatchOf(cs.CoreV1().Pods(metav1.NamespaceAll), s)
	}},
}

// probe is a store that looks at what client-go holds when it hands a list over, and
// tells when the reflector has it.
type probe struct {
	*reflector[state.Workload, string]
	look   func()
	listed chan struct{}
}

func (p probe) Replace(items []any, revision string) error {
	if p.look != nil {
		p.look()
	}
	defer close(p.listed)
	return p.reflector.Replace(items, revision)
}

// readOnce reads all pods once, as the room does, and gives the fixture that has them.
func readOnce(t testing.TB, lw *cache.ListWatch, look func()) *podFixture {
	f := newPodFixture(t, hivetest.Logger(t, hivetest.LogLevel(slog.LevelError)))
	store := probe{f.reflector, look, make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cache.NewReflectorWithOptions(lw, nil, store, cache.ReflectorOptions{Name: "test", TypeDescription: "Pod"}).RunWithContext(ctx)
	}()
	defer func() { cancel(); <-ended }()
	select {
	case <-store.listed:
	case <-time.After(5 * time.Minute):
		require.FailNow(t, "no list of pods")
	}
	f.applier.applyAll()
	return f
}

// TestPodReads: each way gives the same rows, and metadata the fewest bytes. Metadata
// is what is asked for of a real API server.
func TestPodReads(t *testing.T) {
	server := kubeapi.Start(t)
	createPods(t, server, 100)
	received := map[string]int64{}
	for _, read := range podReads {
		cs := newCountedClientset(t, server)
		lw, err := read.listWatch(cs, labels.Everything())
		require.NoError(t, err)
		f := readOnce(t, lw, nil)
		require.Len(t, f.rows(), 5, read.name)
		received[read.name] = cs.bytes.Load()
	}
	t.Log("bytes received for 100 pods:", received)
	require.Less(t, received["metadata"], received["full"])
	require.InEpsilon(t, received["full"], received["slim"], 0.01, "slim types are full ones on the wire")

	lw, err := listWatchOfPods(newCountedClientset(t, server), labels.Everything())
	require.NoError(t, err)
	list, err := lw.ListWithContext(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.IsType(t, &metav1.PartialObjectMetadataList{}, list)
	items := list.(*metav1.PartialObjectMetadataList).Items
	require.Len(t, items, 100)
	managed := 0
	for i := range items {
		for _, entry := range items[i].ManagedFields {
			managed += entry.Size()
		}
	}
	t.Log("of that managed fields:", managed)
}

// BenchmarkPodReads has 5,000 pods read by each way, of which one in twenty says
// something. Beside what Go counts: bytes received, the heap when client-go hands the
// list over and after it was applied, and the CPU of this process, which is no more than
// an impression on a busy machine.
func BenchmarkPodReads(b *testing.B) {
	const count = 5000
	server := kubeapi.Start(b)
	createPods(b, server, count)
	for _, read := range podReads {
		b.Run(read.name, func(b *testing.B) {
			cs := newCountedClientset(b, server)
			lw, err := read.listWatch(cs, labels.Everything())
			require.NoError(b, err)
			b.ReportAllocs()
			var held, kept uint64
			var cpu time.Duration
			for b.Loop() {
				b.StopTimer()
				base := liveHeap()
				began := cpuTime()
				b.StartTimer()
				f := readOnce(b, lw, func() {
					b.StopTimer()
					cpu += cpuTime() - began
					held += liveHeap() - base
					began = cpuTime()
					b.StartTimer()
				})
				b.StopTimer()
				cpu += cpuTime() - began
				kept += liveHeap() - base
				require.Len(b, f.rows(), count/20)
				b.StartTimer()
			}
			b.ReportMetric(float64(cs.bytes.Load())/float64(b.N)/count, "received-B/pod")
			b.ReportMetric(float64(held)/float64(b.N)/count, "held-B/pod")
			b.ReportMetric(float64(kept)/float64(b.N)/count, "kept-B/pod")
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N)/count, "cpu-µs/pod")
		})
	}
	// And one pod's change, as a watch tells it.
	for _, read := range podReads {
		b.Run("change/"+read.name, func(b *testing.B) {
			cs := newCountedClientset(b, server)
			lw, err := read.listWatch(cs, labels.Everything())
			require.NoError(b, err)
			list, err := lw.ListWithContext(b.Context(), metav1.ListOptions{})
			require.NoError(b, err)
			revision := list.(metav1.ListInterface).GetResourceVersion()
			w, err := lw.WatchWithContext(b.Context(), metav1.ListOptions{ResourceVersion: revision})
			require.NoError(b, err)
			defer w.Stop()
			before := cs.bytes.Load()
			for b.Loop() {
				patch := fmt.Sprintf(`{"metadata":{"annotations":{"n":"%d"}}}`, time.Now().UnixNano())
				_, err := server.Kubernetes.CoreV1().Pods("default").Patch(b.Context(), deploymentPod(1).Name,
					types.MergePatchType, []byte(patch), metav1.PatchOptions{})
				require.NoError(b, err)
				<-w.ResultChan()
			}
			b.ReportMetric(float64(cs.bytes.Load()-before)/float64(b.N), "received-B/op")
		})
	}
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // it can't fail for this process
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
