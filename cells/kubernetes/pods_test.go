// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"testing"

	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// podFixture is the reflector of pods before a real Writer, applied by hand.
type podFixture struct {
	db        *statedb.DB
	writer    *state.Writer
	metrics   *Metrics
	applier   *applier
	reflector *reflector[state.Workload, string]
}

func newPodFixture(t require.TestingT, log *slog.Logger) *podFixture {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	metrics := NewMetrics()
	f := &podFixture{db: db, writer: writer, metrics: metrics, applier: newApplier(writer, metrics),
		reflector: newWorkloads(writer, newProblems(log, podKind.Kind, metrics), metrics)}
	f.applier.add(f.reflector)
	return f
}

// rows are those of the table by pod.
func (f *podFixture) rows() map[string]filter.Workload {
	rows := map[string]filter.Workload{}
	for w := range f.writer.Tables().Workloads.All(f.db.ReadTxn()) {
		rows[w.Namespace+"/"+w.Pod] = w.Workload
	}
	return rows
}

// endpoint makes the endpoint of a pod, or removes it.
func (f *podFixture) endpoint(name string, exists bool) {
	origin, owner := f.writer.Origin("cluster3", 3, state.SourceLocal), state.Owner{Object: "endpoint/foo/" + name}
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, name[0]}), 32)
	tx := f.writer.Begin()
	defer tx.Abort()
	if exists {
		tx.UpsertEndpoint(origin, owner, wire.Endpoint{Prefix: prefix, Namespace: "foo", Pod: name})
	} else {
		tx.DeleteEndpoint(origin, owner, prefix)
	}
	tx.Commit()
}

// gone are the pods of the rows that are the last word of one that was deleted.
func (f *podFixture) gone() map[string]bool {
	gone := map[string]bool{}
	for w := range f.writer.Tables().Workloads.All(f.db.ReadTxn()) {
		if w.Gone {
			gone[w.Namespace+"/"+w.Pod] = true
		}
	}
	return gone
}

func (f *podFixture) problems() float64 {
	return f.metrics.Problems.WithLabelValues("Pod", string(problemSetting)).Get()
}

func podOf(name string, labels, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: "foo", Name: name, Labels: labels, Annotations: annotations,
	}}
}

// TestPodsFollowTheirSource: whatever the events, and wherever the batches are cut, there
// is a row for each pod that says something, and for each that is gone, said something
// before and still has an endpoint; and nothing is kept of the others.
func TestPodsFollowTheirSource(t *testing.T) {
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))
	rapid.Check(t, func(t *rapid.T) {
		f := newPodFixture(t, log)
		type says struct{ labels, annotations map[string]string }
		words, gone, endpoints := map[string]filter.Workload{}, map[string]bool{}, map[string]bool{}
		speak := func(n string, s says) {
			delete(gone, "foo/"+n)
			if words["foo/"+n] = filter.ParseWorkload(s.labels, s.annotations); words["foo/"+n].IsZero() {
				delete(words, "foo/"+n)
			}
		}
		vanish := func(n string) {
			if _, ok := words["foo/"+n]; !ok {
				return
			}
			if gone["foo/"+n] = endpoints[n]; !endpoints[n] {
				delete(words, "foo/"+n)
				delete(gone, "foo/"+n)
			}
		}
		names := []string{"a", "b", "c", "d"}
		name := rapid.SampledFrom(names)
		settings := rapid.MapOf(rapid.SampledFrom([]string{filter.SyncKey, filter.ScopeKey, "app"}),
			rapid.SampledFrom([]string{"true", "false", "global", "regional", ""}))
		pod := rapid.Custom(func(t *rapid.T) says { return says{settings.Draw(t, "labels"), settings.Draw(t, "annotations")} })
		// A streamed list is stripped before it is taken in, a plain one isn't.
		object := func(t *rapid.T, name string, s says) any {
			p := podOf(name, maps.Clone(s.labels), maps.Clone(s.annotations))
			if !rapid.Bool().Draw(t, "stripped") {
				return p
			}
			stripped, err := f.reflector.Transformer()(p)
			require.NoError(t, err)
			return stripped
		}

		t.Repeat(map[string]func(*rapid.T){
			"upsert": func(t *rapid.T) {
				n, s := name.Draw(t, "name"), pod.Draw(t, "pod")
				speak(n, s)
				require.NoError(t, f.reflector.Add(object(t, n, s)))
			},
			"delete": func(t *rapid.T) {
				n := name.Draw(t, "name")
				vanish(n)
				require.NoError(t, f.reflector.Delete(podOf(n, nil, nil)))
			},
			"relist": func(t *rapid.T) {
				source := rapid.MapOf(name, pod).Draw(t, "list")
				var list []any
				for _, n := range names {
					if s, ok := source[n]; ok {
						speak(n, s)
						list = append(list, object(t, n, s))
					} else {
						vanish(n)
					}
				}
				require.NoError(t, f.reflector.Replace(list, ""))
			},
			"endpoint": func(t *rapid.T) {
				// What is pending comes before it. Within one batch pods come first as
				// well, and an endpoint that comes with it still gets the last word.
				f.applier.applyAll()
				n, exists := name.Draw(t, "name"), rapid.Bool().Draw(t, "exists")
				endpoints[n] = exists
				f.endpoint(n, exists)
				if gone["foo/"+n] && !exists {
					delete(words, "foo/"+n)
					delete(gone, "foo/"+n)
				}
			},
			"apply": func(t *rapid.T) { f.applier.applyAll() },
		})
		f.applier.applyAll()

		require.Equal(t, words, f.rows())
		require.Equal(t, gone, f.gone())
		require.Len(t, f.reflector.memory, len(words)-len(gone))
	})
}

// TestSilentPods: what pods that say nothing do is no transaction.
func TestSilentPods(t *testing.T) {
	f := newPodFixture(t, hivetest.Logger(t))
	var list []any
	for n := range 1000 {
		list = append(list, podOf(fmt.Sprint(n), map[string]string{"app": "web"}, nil))
	}
	require.NoError(t, f.reflector.Replace(list, ""))
	require.Empty(t, f.reflector.pending.index)
	f.applier.applyAll()
	require.True(t, f.reflector.complete())
	require.Empty(t, f.reflector.memory)
	require.Equal(t, 1.0, f.metrics.Batches.Get())

	require.NoError(t, f.reflector.Update(podOf("1", map[string]string{"app": "web"}, nil)))
	require.NoError(t, f.reflector.Delete(podOf("2", nil, nil)))
	f.applier.applyAll()
	require.Equal(t, 1.0, f.metrics.Batches.Get())

	require.NoError(t, f.reflector.Update(podOf("1", nil, map[string]string{filter.SyncKey: "true"})))
	f.applier.applyAll()
	require.Equal(t, 2.0, f.metrics.Batches.Get())
	require.Len(t, f.rows(), 1)
}

// TestSilentNamesake: what a deleted pod said last is cleared by a silent pod of its name,
// by an event as by a list, and is no reason for a transaction on account of others.
func TestSilentNamesake(t *testing.T) {
	for _, how := range []string{"event", "list"} {
		f := newPodFixture(t, hivetest.Logger(t))
		f.endpoint("a", true)
		require.NoError(t, f.reflector.Replace([]any{podOf("a", nil, map[string]string{filter.SyncKey: "true"}), podOf("b", nil, nil)}, ""))
		f.applier.applyAll()
		require.NoError(t, f.reflector.Delete(podOf("a", nil, nil)))
		f.applier.applyAll()
		require.Equal(t, map[string]bool{"foo/a": true}, f.gone())
		require.Empty(t, f.reflector.memory)

		batches := f.metrics.Batches.Get()
		require.NoError(t, f.reflector.Update(podOf("b", nil, nil)))
		require.NoError(t, f.reflector.Delete(podOf("a", nil, nil)))
		f.applier.applyAll()
		require.Equal(t, batches, f.metrics.Batches.Get())

		if how == "event" {
			require.NoError(t, f.reflector.Add(podOf("a", nil, nil)))
		} else {
			require.NoError(t, f.reflector.Replace([]any{podOf("b", nil, nil)}, ""))
			f.applier.applyAll()
			require.Equal(t, map[string]bool{"foo/a": true}, f.gone(), "it isn't there")
			require.NoError(t, f.reflector.Replace([]any{podOf("a", nil, nil)}, ""))
		}
		f.applier.applyAll()
		require.Empty(t, f.rows())
	}
}

// TestPodProblems: a fault is counted once for each pod that has it.
func TestPodProblems(t *testing.T) {
	f := newPodFixture(t, hivetest.Logger(t))
	says := func(name, sync string) {
		require.NoError(t, f.reflector.Add(podOf(name, nil, map[string]string{filter.SyncKey: sync})))
		f.applier.applyAll()
	}
	for range 3 {
		says("a", "yes") // its status changes
	}
	require.Equal(t, 1.0, f.problems())
	says("b", "yes")
	require.Equal(t, 2.0, f.problems())
	says("a", "no")
	require.Equal(t, 3.0, f.problems())
	require.Contains(t, f.rows()["foo/a"].Problem, `"no"`)
	require.NoError(t, f.reflector.Replace([]any{podOf("a", nil, map[string]string{filter.SyncKey: "no"})}, ""))
	f.applier.applyAll()
	require.Equal(t, 3.0, f.problems())
	says("a", "true")
	require.Empty(t, f.rows()["foo/a"].Problem)
	says("a", "no")
	require.Equal(t, 4.0, f.problems())
}

// TestConvertPod: the types that a pod comes in say the same.
func TestConvertPod(t *testing.T) {
	annotations := map[string]string{filter.SyncKey: "true"}
	want := state.Workload{Namespace: "foo", Pod: "a", Workload: filter.Workload{Sync: true, SyncFrom: filter.AsAnnotation}}
	for _, obj := range []metav1.Object{
		podOf("a", nil, annotations),
		&slim_corev1.Pod{ObjectMeta: slim_metav1.ObjectMeta{Namespace: "foo", Name: "a", Annotations: annotations}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "a", Annotations: annotations}},
	} {
		got, ok := convertPod(obj, nil)
		require.True(t, ok)
		require.Equal(t, want, got, "%T", obj)
	}
}
