// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// cilium-agent is upstream's agent with our cells in its hive. With none of our flags
// set it is upstream's agent: see docs/cilium-agent.md.
package main

import (
	"github.com/cilium/cilium/daemon/cmd"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells/host/agent"
)

func main() { cmd.Execute(newCmd()) }

func newCmd() *cobra.Command {
	return cmd.NewAgentCmd(func() *hive.Hive { return hive.New(cmd.Agent, agent.Cells) })
}
