// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

// Package hostagent runs the control plane of upstream's agent in a test, with
// cells of ours compiled in, against a real API server:
//
//	kube-apiserver ◀─▶ upstream's client ─▶ upstream's control plane + the test's cells ─▶ fake datapath
//
//	agent.go       an agent that is started and stopped, and what a test looks at
//	parts.go       what upstream's agent is made of here
//	node.go        the Kubernetes node that it runs on
//	pods.go        pods on that node
//	shell.go       its shell
//	datapath.go    the map that the agent's ipcache has in the kernel
//
// The datapath is upstream's own fake: maps and programs of a real one would be
// the host's. A test that is about the ipcache's map adds a [Datapath]. In upstream's "dry
// mode" an agent also neither restores endpoints of an earlier start nor puts the host's
// addresses into its ipcache. Nobody here waits for the former, which upstream's jobs would
// do for ever.
//
// It isn't built with the race detector: upstream's agent, which isn't made to be
// stopped and started in one process, has races of its own when it stops (its identity
// allocator closes a channel that its watch may send on, its status collector reads
// what a probe writes). What runs within it is tested with the detector by itself.
//
// Upstream's configuration is global. So there is one agent at a time in a
// process, which [New] holds the test to; it can be stopped and started again.
package hostagent

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	agentcmd "github.com/cilium/cilium/daemon/cmd"
	daemonk8s "github.com/cilium/cilium/daemon/k8s"
	fakedatapath "github.com/cilium/cilium/pkg/datapath/fake/types"
	endpointapi "github.com/cilium/cilium/pkg/endpoint/api"
	"github.com/cilium/cilium/pkg/endpointmanager"
	"github.com/cilium/cilium/pkg/hive"
	healthtypes "github.com/cilium/cilium/pkg/hive/health/types"
	identitycell "github.com/cilium/cilium/pkg/identity/cache/cell"
	"github.com/cilium/cilium/pkg/ipam"
	ipamoption "github.com/cilium/cilium/pkg/ipam/option"
	"github.com/cilium/cilium/pkg/ipcache"
	k8sclient "github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/labelsfilter"
	"github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/node/manager"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/cilium/pkg/policy"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// startTimeout bounds a start, and an end, on a machine that builds meanwhile.
const startTimeout = 2 * time.Minute

// Config says which agent is to run.
type Config struct {
	// Server is the API server, on which [AddNode] has made the agent's node.
	Server *kubeapi.Server
	// Node is the name of that.
	Node string
	// Flags are flags of upstream's agent, or of the cells, by their names.
	Flags mesh.Flags
	// Options changes what is no flag here, if it isn't nil; it is called last
	// before each start.
	Options func(*option.DaemonConfig)
	// Cells are what is compiled in.
	Cells []cell.Cell
}

// Parts are what a test looks at.
type Parts struct {
	cell.In

	DB         *statedb.DB
	IPCache    *ipcache.IPCache
	Identities identitycell.CachingIdentityAllocator
	// Policy has the selector cache.
	Policy policy.PolicyRepository
	Nodes  manager.NodeManager
	// NodeHandler is the datapath's side of the nodes.
	NodeHandler *fakedatapath.FakeNodeHandler
	LocalNode   *node.LocalNodeStore
	Endpoints   endpointmanager.EndpointManager
	EndpointAPI endpointapi.EndpointAPIManager
	IPAM        *ipam.IPAM
	LocalPods   statedb.Table[daemonk8s.LocalPod]
	Clientset   k8sclient.Clientset
	Health      statedb.Table[healthtypes.Status]
}

// Agent is upstream's agent with other cells in it. Parts are set by each start.
type Agent struct {
	Parts

	t      testing.TB
	config Config
	dir    string
	log    *slog.Logger
	// running is nil while it is stopped.
	running *hive.Hive
	// pods are those that it has endpoints of.
	pods []*Pod
}

// New makes an agent, to be started. It ends with the test. The test can't run in
// parallel with others.
func New(t testing.TB, config Config) *Agent {
	t.Helper()
	// What upstream has for this is global as well, and a parallel test mayn't
	// set a variable of the environment.
	t.Setenv("K8S_NODE_NAME", config.Node)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "globals"), 0o755))
	a := &Agent{t: t, config: config, dir: dir, log: mesh.Log(t)}
	t.Cleanup(a.Stop)
	return a
}

// Start starts the agent, and returns when upstream's own start is through: its
// endpoints may still wait for what others have to bring.
func (a *Agent) Start() {
	a.t.Helper()
	require.Nil(a.t, a.running, "the agent runs already")

	next := hive.New(
		// First, so that their hooks can come before upstream's.
		cell.Group(a.config.Cells...),
		upstreamCells,
		cell.Invoke(func(parts Parts) { a.Parts = parts }),
	)
	a.configure(next)

	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	a.running = next
	require.NoError(a.t, next.Start(a.log, ctx), "starting the agent")
}

// Stop stops the agent, if it runs. The endpoints of its pods go first, and with them the
// CiliumEndpoints: in a process they would go on without an agent, and the next one
// wouldn't know of them.
func (a *Agent) Stop() {
	a.t.Helper()
	if a.running == nil {
		return
	}
	a.removeEndpoints()
	last := a.running
	a.running = nil
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	require.NoError(a.t, last.Stop(a.log, ctx), "stopping the agent")
}

// Restart stops the agent and starts it again, with what it left in its state
// directory and at the API server.
func (a *Agent) Restart() {
	a.t.Helper()
	a.Stop()
	a.Start()
}

// StateDir is upstream's --state-dir.
func (a *Agent) StateDir() string { return a.dir }

// configure gives the hive its flags, and the process upstream's options.
func (a *Agent) configure(h *hive.Hive) {
	a.t.Helper()
	nodetypes.SetName(a.config.Node)
	require.NoError(a.t, labelsfilter.ParseLabelPrefixCfg(a.log, nil, nil, ""))

	command := &cobra.Command{}
	h.RegisterFlags(command.Flags())
	agentcmd.InitGlobalFlags(a.log, command, h.Viper())
	flags := mesh.Flags{
		"enable-k8s":          "true",
		"k8s-kubeconfig-path": a.config.Server.Kubeconfig,
		// Without it, it is a proxy's ports that are to be free.
		"enable-l7-proxy": "false",
		"enable-ipv6":     "false",
		// One of the fake datapath's.
		"direct-routing-device": "test0",
		"state-dir":             a.dir,
		"shell-sock-path":       a.shellSocket(),
		// What is looked for below it isn't the host's.
		"bpf-root":             a.dir,
		"endpoint-gc-interval": "0",
		// Nor are there programs to look after.
		"endpoint-bpf-prog-watchdog-interval": "0",
		"ipam":                                ipamoption.IPAMKubernetes,
	}
	for name, value := range a.config.Flags {
		flags[name] = value
	}
	for name, value := range flags {
		require.NotNil(a.t, command.Flags().Lookup(name), "there is no flag --%s", name)
		h.Viper().Set(name, value)
	}

	c := option.Config
	c.Populate(a.log, h.Viper())
	c.PopulateEnableCiliumNodeCRD(a.log, h.Viper())
	c.RunDir, c.StateDir = a.dir, a.dir
	c.DryMode = true
	c.Opts = option.NewIntOptions(&option.DaemonMutableOptionLibrary)
	c.K8sRequireIPv6PodCIDR = false
	if a.config.Options != nil {
		a.config.Options(c)
	}
}

// OurHealth is what our modules and jobs in the agent say of theirs, by their IDs.
func (a *Agent) OurHealth() map[string]healthtypes.Status {
	said := map[string]healthtypes.Status{}
	for status := range a.Health.All(a.DB.ReadTxn()) {
		if slices.Contains(status.ID.Module, "waggle") {
			said[status.ID.String()] = status
		}
	}
	return said
}

// SetFlag changes a flag for the next start.
func (a *Agent) SetFlag(name, value string) {
	flags := mesh.Flags{}
	maps.Copy(flags, a.config.Flags)
	flags[name] = value
	a.config.Flags = flags
}
