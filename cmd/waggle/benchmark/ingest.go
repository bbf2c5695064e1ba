// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchIngestCmd() *cobra.Command {
	common := newBenchFlags()
	var entries int
	mesh := &common.config.Mesh
	*mesh = bench.Mesh{Clusters: 1, Nodes: 5000, Identities: 5000, Seed: 1}
	cmd := &cobra.Command{
		Use:   "ingest",
		Short: "Measure how an agent takes in a mesh, from etcd to the BPF map",
		Long: `Fills one etcd with the endpoints, nodes and identities of a mesh as a
KVStoreMesh would have cached them, starts "waggle agent" on it, and measures
from the start of that process until each endpoint is in the BPF map: time, CPU
of each process and peak memory. It needs the right to use BPF.

The peer is upstream's ipcache.IPIdentityWatcher with upstream's ipcache.IPCache,
in a process of its own and without a map: with pages as shipped
(upstream-shipped) or large ones (upstream). Its program is compiled from the
same dependency: make bin/upstream-ingest. With "bridge" it is our own cells that
fill upstream's ipcache.IPCache, as they do within cilium-agent: make
bin/bridge-ingest.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mesh.Clusters < 1 || entries%mesh.Clusters != 0 {
				return fmt.Errorf("--entries=%d: must be a multiple of --clusters=%d", entries, mesh.Clusters)
			}
			mesh.Endpoints = entries / mesh.Clusters
			return common.run(cmd, func() (benchReport, error) { return bench.Ingest(cmd.Context(), common.config) })
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&entries, "entries", 500_000, "Number of endpoints over all clusters")
	flags.IntVar(&mesh.Clusters, "clusters", mesh.Clusters, "Number of source clusters")
	flags.IntVar(&mesh.Nodes, "nodes", mesh.Nodes, "Nodes of each source cluster")
	flags.IntVar(&mesh.Identities, "identities", mesh.Identities, "Identities of each source cluster")
	common.registerRounds(flags)
	flags.StringSliceVar(&common.config.Peers, "peer", nil, "What to measure as well, in turns: "+strings.Join(bench.IngestPeers, ", "))
	flags.StringVar(&common.config.PeerProgram, "peer-program", "", "The peer (upstream-ingest beside this program if empty)")
	return cmd
}
