// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// crdPollInterval is how often the API server is asked again for a kind that it
// doesn't have. client-go's own back-off would grow to 30 s and more, and the
// first thing a new cluster does is to install its CRDs.
const crdPollInterval = time.Second

// apiServer reads one kind from the API server.
type apiServer struct {
	log      *slog.Logger
	kind     *kind
	upstream *cache.ListWatch // of the clientset
}

// run lists and watches until ctx ends. client-go's reflector deals with
// expired revisions, dropped connections and back-off.
func (s *apiServer) run(ctx context.Context, health cell.Health) error {
	if s.kind.custom && !s.awaitCRD(ctx, health) {
		return nil
	}
	observed := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := s.upstream.ListWithContext(ctx, opts)
			s.observe(ctx, health, "list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := s.upstream.WatchWithContext(ctx, opts)
			s.observe(ctx, health, "watch", err)
			return w, err
		},
	}
	cache.NewReflectorWithOptions(observed, nil, s.kind.store, cache.ReflectorOptions{
		Name:            "waggle",
		TypeDescription: s.kind.Kind,
	}).RunWithContext(ctx)
	return nil
}

// awaitCRD waits until the API server has the kind; false when ctx ended first.
// Other errors are left to the reflector.
func (s *apiServer) awaitCRD(ctx context.Context, health cell.Health) bool {
	var ticker *time.Ticker
	for {
		_, err := s.upstream.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
		if !apierrors.IsNotFound(err) {
			return ctx.Err() == nil
		}
		if ticker == nil {
			ticker = time.NewTicker(crdPollInterval)
			defer ticker.Stop()
			health.Degraded("Waiting for the CRD to be installed", err)
			s.log.Warn("Kubernetes doesn't know a kind, waiting for its CRD to be installed",
				"kind", s.kind.Kind, "group", s.kind.Group)
			if s.kind.optional {
				if err := s.kind.store.Replace(nil, ""); err != nil {
					health.Degraded("Taking in an empty list failed", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// observe turns the outcome of one request into health. An expired revision is
// ordinary: the reflector lists again.
func (s *apiServer) observe(ctx context.Context, health cell.Health, verb string, err error) {
	switch {
	case err == nil:
		health.OK("Reading")
	case ctx.Err() != nil, errors.Is(err, context.Canceled), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
	default:
		health.Degraded(fmt.Sprintf("Can't %s", verb), err)
		s.log.Warn("Reading from Kubernetes failed, trying again", "kind", s.kind.Kind, "verb", verb, "error", err)
	}
}
