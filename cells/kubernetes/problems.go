// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/cilium/pkg/metrics/metric"
	"golang.org/x/time/rate"
)

// problem classifies what is wrong with an object; it is a metric label, so
// the set is closed.
type problem string

const (
	// problemName means: the object's name isn't what its kind demands.
	problemName problem = "name"
	// problemLabels means: an identity has no security labels.
	problemLabels problem = "labels"
	// problemAddress means: an address or a CIDR can't be parsed.
	problemAddress problem = "address"
	// problemNetworking means: an endpoint of a slice says nothing about its network.
	problemNetworking problem = "networking"
	// problemTimestamp means: a service export has no creation timestamp.
	problemTimestamp problem = "timestamp"
	// problemSetting means: what a pod says of how far it is synced is malformed.
	problemSetting problem = "setting"
	// problemType means: the source delivered something else than the kind's type.
	problemType problem = "type"
	// problemManifest means: a document of a manifest can't be read.
	problemManifest problem = "manifest"
)

// errNoLabels is the detail of problemLabels.
var errNoLabels = errors.New("no security labels")

// report takes one problem of the object being converted. The converters are
// pure but for it.
type report func(problem, error)

// logBurst and logRate bound the lines about bad objects of one kind: the
// first ten at once, then one a second. What is left out is counted in the
// next line, and always in the metric.
const (
	logBurst = 10
	logRate  = rate.Limit(1)
)

// problems logs and counts the bad objects of one kind. It is safe for
// concurrent use.
type problems struct {
	log     *slog.Logger
	kind    string
	metrics *Metrics

	mu         sync.Mutex
	limit      *rate.Limiter
	suppressed int
}

// newProblems expects some problems: they are counted from 0 on, so that a rate can be seen
// from the first one on.
func newProblems(log *slog.Logger, kind string, metrics *Metrics, expected ...problem) *problems {
	for _, problem := range expected {
		metrics.Problems.WithLabelValues(kind, string(problem))
	}
	return &problems{
		log:     log.With("kind", kind),
		kind:    kind,
		metrics: metrics,
		limit:   rate.NewLimiter(logRate, logBurst),
	}
}

// of gives the report for one object, named as "namespace/name" or "name".
func (p *problems) of(object string) report {
	return func(problem problem, err error) { p.add(problem, err, slog.String("object", object)) }
}

// add records one problem; attrs say where it is.
func (p *problems) add(problem problem, err error, attrs ...slog.Attr) {
	p.metrics.Problems.WithLabelValues(p.kind, string(problem)).Inc()

	p.mu.Lock()
	if !p.limit.Allow() {
		p.suppressed++
		p.mu.Unlock()
		return
	}
	suppressed := p.suppressed
	p.suppressed = 0
	p.mu.Unlock()

	attrs = append(attrs, slog.String("problem", string(problem)), slog.Any("error", err))
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("not-logged-before", suppressed))
	}
	p.log.LogAttrs(context.Background(), slog.LevelWarn, "Ignoring what is wrong in an object", attrs...)
}

// The actions by which Metrics.Events are counted.
const (
	actionUpsert = "upsert"
	actionDelete = "delete"
)

// Metrics of this room.
type Metrics struct {
	// Problems counts what was ignored, by kind and by problem.
	Problems metric.Vec[metric.Counter]
	// Events counts the changes applied, by kind and action.
	Events metric.Vec[metric.Counter]
	// Batches counts the transactions that took them in: Events divided by
	// Batches is the size of an average batch.
	Batches metric.Counter
}

// NewMetrics makes the metrics; the hive's registry collects them.
func NewMetrics() *Metrics {
	const namespace, subsystem = "waggle", "kubernetes"
	return &Metrics{
		Problems: metric.NewCounterVec(metric.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "problems_total",
			Help: "Objects, or parts of them, that were ignored because they are malformed",
		}, []string{"kind", "problem"}),
		Events: metric.NewCounterVec(metric.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "events_total",
			Help: "Changes of objects that were applied to the tables",
		}, []string{"kind", "action"}),
		Batches: metric.NewCounter(metric.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "batches_total",
			Help: "Table transactions that applied changes of objects",
		}),
	}
}

// objectName is how an object is called in logs and in the memory of a
// reflector.
func objectName(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// unexpectedType is the detail of problemType.
func unexpectedType(obj any) error { return fmt.Errorf("unexpected type %T", obj) }
