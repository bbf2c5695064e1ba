// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchExportCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.ExportConfig
	)
	mesh := &common.config.Mesh
	*mesh = bench.Mesh{Clusters: 1, Endpoints: 2000, Nodes: 100, Identities: 100, Seed: 1}
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Measure how changes get from Kubernetes into a cluster's etcd",
		Long: `Fills a real kube-apiserver with the nodes, identities and endpoints of a cluster,
starts "waggle clustermesh" on it with an empty etcd, and measures from the start
of that process until all is there. Then it adds endpoints at a steady rate, and
measures how long each takes from when it is due until its key is in the etcd, and
what that costs. Endpoints are CiliumEndpoints (cep), or entries that are added to
CiliumEndpointSlices one at a time (ces).

A peer does the same work in turns: upstream's clustermesh-apiserver with the
limits of its chart (upstream-shipped) or without (upstream). The programs are
built by: make bin/kube-apiserver bin/upstream-clustermesh-apiserver.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Export(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&mesh.Endpoints, "endpoints", mesh.Endpoints, "Endpoints at the start")
	flags.IntVar(&mesh.Nodes, "nodes", mesh.Nodes, "Nodes of the cluster")
	flags.IntVar(&mesh.Identities, "identities", mesh.Identities, "Identities of the cluster")
	flags.StringSliceVar(&config.Modes, "mode", bench.ExportModes, "Kinds of objects that endpoints are: "+strings.Join(bench.ExportModes, ", "))
	flags.Float64Var(&config.Rate, "rate", 100, "Endpoints to add per second")
	flags.DurationVar(&config.Duration, "duration", 10*time.Second, "How long to add endpoints")
	flags.DurationVar(&config.Drain, "drain", 10*time.Second, "How long to wait afterwards for what hasn't arrived")
	flags.StringSliceVar(&common.config.Peers, "peer", nil, "What to measure as well, in turns: "+strings.Join(bench.ExportPeers, ", "))
	flags.StringVar(&common.config.PeerProgram, "peer-program", "", "Upstream's clustermesh-apiserver (the one beside this program if empty)")
	flags.StringVar(&config.KubernetesProgram, "kubernetes-program", "", "The real kube-apiserver (the one beside this program if empty)")
	common.registerRounds(flags)
	return cmd
}
