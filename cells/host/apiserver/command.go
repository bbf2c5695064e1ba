// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	clustermeshdbg "github.com/cilium/cilium/clustermesh-apiserver/clustermesh-dbg"
	"github.com/cilium/cilium/clustermesh-apiserver/etcdinit"
	"github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh"
	kvstoremeshdbg "github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh-dbg"
	mcsapicorednscfg "github.com/cilium/cilium/clustermesh-apiserver/mcsapi-coredns-cfg"
	"github.com/cilium/cilium/clustermesh-apiserver/version"
	"github.com/cilium/cilium/pkg/cmdref"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/spf13/cobra"
)

// NewRootCmd makes the command with all its subcommands: those with a hive of ours
// within upstream's own commands, and the others as upstream has them. Upstream's
// debug commands are variables of its packages, so that one such tree in a process is
// enough.
func NewRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "clustermesh-apiserver",
		Short: "Run the ClusterMesh apiserver",
	}
	root.AddCommand(
		clustermesh.NewCmd(hive.New(ClusterMesh)),
		kvstoremesh.NewCmd(hive.New(KVStoreMesh)),
		newCacheCmd(hive.New(InClusterCache)),

		cmdref.NewCmd(root),
		version.NewCmd(),
		etcdinit.NewCmd(),
		clustermeshdbg.RootCmd,
		kvstoremeshdbg.RootCmd,
		hive.CiliumShellCmd,
		mcsapicorednscfg.NewCmd(hive.New(mcsapicorednscfg.Cell)),
	)
	return root
}
