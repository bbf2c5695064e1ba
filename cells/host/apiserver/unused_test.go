// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/controller"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// TestUnused: what has no effect is accepted and named at start, and no default is.
func TestUnused(t *testing.T) {
	start := func(p unusedParams) (string, error) {
		var said bytes.Buffer
		lifecycle := &cell.DefaultLifecycle{}
		p.Log, p.Lifecycle = slog.New(slog.NewTextHandler(&said, nil)), lifecycle
		reportUnused(p)
		require.Empty(t, said.String())
		err := lifecycle.Start(slog.New(slog.DiscardHandler), t.Context())
		return said.String(), err
	}
	said, err := start(unusedParams{Store: defaultStoreConfig, CRDs: synced.DefaultCRDSyncConfig})
	require.NoError(t, err)
	require.Empty(t, said)

	p := unusedParams{
		Store: defaultStoreConfig, Controllers: controller.Config{ControllerGroupMetrics: []string{"all"}},
		Etcd: etcd.Config{}.With(etcd.OptLimit, "256").With(etcd.OptBootstrapQPS, "100"),
		CRDs: synced.CRDSyncConfig{CRDWaitTimeout: time.Hour},
	}
	p.Store.QuorumErrs++
	said, err = start(p)
	require.NoError(t, err)
	for _, flag := range []string{
		"--kvstore-max-consecutive-quorum-errors", "--controller-group-metrics", "--crd-wait-timeout",
		`"--kvstore-opt etcd.limit"`, `"--kvstore-opt etcd.bootstrapQps"`,
	} {
		require.Contains(t, said, "flag="+flag)
	}

	p.Store.KVStore = "consul"
	_, err = start(p)
	require.ErrorContains(t, err, `--kvstore="consul"`)
}
