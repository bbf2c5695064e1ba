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

// newCmd has our cells first: what they refuse is refused before the agent does anything,
// and what they bring is on its way when upstream's start waits for it.
func newCmd() *cobra.Command {
	return cmd.NewAgentCmd(func() *hive.Hive { return hive.New(agent.Cells, cmd.Agent) })
}
