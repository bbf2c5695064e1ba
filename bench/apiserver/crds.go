// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	ciliumio "github.com/cilium/cilium/pkg/k8s/apis/cilium.io"
	crdclient "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/client"
	"github.com/cilium/cilium/pkg/k8s/apis/crdhelpers"
	extensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	mcscrd "sigs.k8s.io/mcs-api/config/crd"
)

// crdInterval is the pause between two questions whether a CRD is established.
// Upstream's own installation asks every 500 ms for one CRD after the other,
// which is most of the 5-10 s that it takes.
const crdInterval = 20 * time.Millisecond

// InstallCRDs creates the CRDs that upstream's operator would, and the
// MCS-API's, and returns when all are served.
func InstallCRDs(ctx context.Context, log *slog.Logger, client extensionsclient.Interface) error {
	crds, err := definitions(log)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, crd := range crds {
		group.Go(func() error {
			if err := crdhelpers.CreateUpdateCRD(log, client, crd, poller{ctx}, neverUpdate); err != nil {
				return fmt.Errorf("installing %s: %w", crd.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// definitions are the CRDs as upstream ships them.
func definitions(log *slog.Logger) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, listed := range crdclient.CustomResourceDefinitionList() {
		crd := crdclient.GetPregeneratedCRD(log, listed.Name)
		// Upstream's operator, run against this server, takes a CRD without
		// this label for an old one, and replaces it.
		crd.Labels = map[string]string{
			ciliumio.CustomResourceDefinitionSchemaVersionKey: ciliumio.CustomResourceDefinitionSchemaVersion,
		}
		crds = append(crds, &crd)
	}
	for _, manifest := range [][]byte{mcscrd.ServiceExportCRD, mcscrd.ServiceImportCRD} {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(manifest, &crd); err != nil {
			return nil, fmt.Errorf("decoding an MCS-API CRD: %w", err)
		}
		crds = append(crds, &crd)
	}
	return crds, nil
}

// neverUpdate leaves a CRD that exists as it is: only this package made it.
func neverUpdate(_, _ *apiextensionsv1.CustomResourceDefinition) (bool, error) { return false, nil }

// poller waits as upstream's does, but in short steps and no longer than ctx.
type poller struct{ ctx context.Context }

// Poll calls done until it returns true or an error, or timeout has passed.
func (p poller) Poll(_, timeout time.Duration, done func() (bool, error)) error {
	return wait.PollUntilContextTimeout(p.ctx, crdInterval, timeout, true,
		func(context.Context) (bool, error) { return done() })
}
