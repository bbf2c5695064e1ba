// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	"github.com/cilium/cilium/clustermesh-apiserver/option"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/hive/cell"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/metrics"
)

// InClusterCache is the hive of "incluster-cache": Kubernetes → an etcd of its own,
// which the cluster's agents read. Its ports are those of "clustermesh", beside which
// it doesn't run.
var InClusterCache = cell.Module(
	"incluster-cache-apiserver",
	"Kubernetes to the etcd that the agents of the cluster read",

	infrastructure(option.PprofPortClusterMesh, defaults.GopsPortApiserver),
	cells.InClusterCache,
	metrics.InClusterCache,

	clustermesh.HealthAPIEndpointsCell, // /readyz
	cell.Invoke(readyWhenExported),
)

// newCacheCmd runs the hive as upstream's commands run theirs.
func newCacheCmd(h *hive.Hive) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "incluster-cache",
		Short: "Run the cache that the cluster's own agents read instead of the Kubernetes API server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return h.Run(logging.DefaultSlogLogger) // set up before
		},
		PreRun: func(*cobra.Command, []string) { setUp(h, "incluster-cache") },
	}
	h.RegisterFlags(cmd.Flags())
	cmd.AddCommand(h.Command())
	return cmd
}
