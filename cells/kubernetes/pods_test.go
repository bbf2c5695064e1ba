// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"log/slog"
	"maps"
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
		reflector: newWorkloads(newProblems(log, podKind.Kind, metrics), metrics)}
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

func (f *podFixture) problems() float64 {
	return f.metrics.Problems.WithLabelValues("Pod", string(ProblemSetting)).Get()
}

func podOf(name string, labels, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: "foo", Name: name, Labels: labels, Annotations: annotations,
	}}
}

// TestPodsFollowTheirSource: whatever the events, and wherever the batches are cut, there
// is a row for each pod that says something, and nothing is kept of the others.
func TestPodsFollowTheirSource(t *testing.T) {
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))
	rapid.Check(t, func(t *rapid.T) {
		f := newPodFixture(t, log)
		type says struct{ labels, annotations map[string]string }
		source := map[string]says{}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
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
				source[n] = s
				require.NoError(t, f.reflector.Add(object(t, n, s)))
			},
			"delete": func(t *rapid.T) {
				n := name.Draw(t, "name")
				delete(source, n)
				require.NoError(t, f.reflector.Delete(podOf(n, nil, nil)))
			},
			"relist": func(t *rapid.T) {
				source = rapid.MapOf(name, pod).Draw(t, "list")
				var list []any
				for n, s := range source {
					list = append(list, object(t, n, s))
				}
				require.NoError(t, f.reflector.Replace(list, ""))
			},
			"apply": func(t *rapid.T) { f.applier.applyAll() },
		})
		f.applier.applyAll()

		want := map[string]filter.Workload{}
		for n, s := range source {
			if w := filter.ParseWorkload(s.labels, s.annotations); !w.IsZero() {
				want["foo/"+n] = w
			}
		}
		require.Equal(t, want, f.rows())
		require.Len(t, f.reflector.memory, len(want))
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
