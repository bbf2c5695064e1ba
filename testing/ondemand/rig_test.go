// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/cilium/pkg/node/addressing"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/kvstoremesh/readthrough"
	"github.com/waggle-mesh/waggle/testing/mesh"
	"github.com/waggle-mesh/waggle/testing/netns"
	"github.com/waggle-mesh/waggle/testing/netns/enforcer"
)

const (
	// patience is for what takes milliseconds, but on the busiest machine.
	patience = 3 * time.Minute
	tick     = 2 * time.Millisecond

	// port is where everybody answers.
	port = 7777

	// The clusters, and the identities of pods of the one that is there.
	hereName, thereName = "here", "there"
	hereID, thereID     = 1, 2
	friendID            = thereID<<16 + 300
	otherFriendID       = thereID<<16 + 301
	strangerID          = thereID<<16 + 302
)

// way is how an agent is to find out, and what from.
type way struct {
	// side is that of the packet that isn't known.
	side bpf.Side
	// tunnel: nodes exchange packets through a tunnel, else as they are.
	tunnel bool
	// off: there is no on-demand resolution.
	off bool
	// flags are more of the agent's.
	flags mesh.Flags
}

// String names the way.
func (w way) String() string {
	name := w.side.String() + ",native"
	if w.tunnel {
		name = w.side.String() + ",tunnel"
	}
	if w.off {
		name += ",off"
	}
	return name
}

// world is two clusters. All pods of the one that is there have opted out of being
// pushed. It may have several rigs, one after the other.
type world struct {
	t *testing.T
	// through: agents read their own cluster's etcd and ask its KVStoreMesh's
	// read-through, both with upstream's roles; else they read the other cluster's etcd.
	through     bool
	here, there *mesh.Cluster
	objects     *mesh.Objects
	// remotes are what an agent that is here is configured with, and flags more of it.
	remotes *mesh.Directory
	flags   mesh.Flags
	// readThrough are the metrics of the KVStoreMesh's; nil unless through.
	readThrough *prometheus.Registry
}

// rig is a node of each of two clusters. On the one that is here are pods that talk with
// those that are there, an agent that has to find them, and an enforcer that drops what
// isn't from, or to, a friend.
type rig struct {
	t *testing.T
	way
	*world
	nodes  *netns.Nodes
	sender *enforcer.Encapsulator

	bpfRoot string
	agent   *mesh.Hive
	// seen is what the agent that runs has.
	seen
	enforcer *enforcer.Enforcer
	unfollow func()
}

// seen is what is seen of an agent from inside.
type seen struct {
	db *statedb.DB
	state.Tables
	rows     statedb.Table[*ondemand.Row]
	datapath *ipcache.Datapath
	health   statedb.Table[types.Status]
	metrics  *prometheus.Registry
}

func newWorld(t *testing.T, through bool) *world {
	netns.Require(t)
	w := &world{t: t, through: through, there: mesh.NewCluster(t, thereName, thereID), objects: mesh.NewObjects(t), flags: mesh.Flags{}}
	w.export()
	w.connect()
	return w
}

func newRig(t *testing.T, of *world, w way) *rig {
	r := &rig{t: t, way: w, world: of, bpfRoot: t.TempDir()}
	var err error
	r.nodes, err = netns.Connect(w.tunnel)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.nodes.Close()) })
	r.answer(r.nodes.There)
	if w.tunnel {
		r.encapsulate(r.nodes.Here, netns.ThereIP)
		r.sender = r.encapsulate(r.nodes.There, netns.HereIP)
		for i := range remotes {
			require.NoError(t, r.sender.Sender(remotes[i], friendIDs[i]))
			require.NoError(t, r.sender.Sender(strangers[i], strangerID))
		}
	}
	r.agent = r.newAgent()
	t.Cleanup(r.unmount)
	return r
}

// export fills the other cluster's etcd with what it has.
func (w *world) export() {
	flags := mesh.Flags{"clustermesh-sync-mode": string(filter.SyncOptIn)}
	if w.through {
		w.there.EnableRoles(w.t)
		flags["kvstore-opt"] = etcd.OptConfig + "=" + w.there.Etcd.ConfigAs(w.t, mesh.UserRoot)
	}
	node := &ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node"}}
	node.Spec.Addresses = []ciliumv2.NodeAddress{{Type: addressing.NodeInternalIP, IP: netns.ThereIP.String()}}
	for _, cidr := range netns.TherePods {
		node.Spec.IPAM.PodCIDRs = append(node.Spec.IPAM.PodCIDRs, cidr.String())
	}
	require.NoError(w.t, w.objects.CiliumFakeClientset.Tracker().Add(node))
	require.NoError(w.t, w.objects.SlimFakeClientset.Tracker().Add(&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{
		Name: "hive", Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "true"},
	}}))
	for id, app := range map[int]string{friendID: friend, otherFriendID: friend, strangerID: "stranger"} {
		require.NoError(w.t, w.objects.CiliumFakeClientset.Tracker().Add(&ciliumv2.CiliumIdentity{
			ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(id)},
			SecurityLabels: map[string]string{
				"k8s:app": app, "k8s:" + wire.LabelCluster: thereName, "k8s:" + wire.LabelNamespace: "hive",
			},
		}))
	}
	// Each friend has an identity that nobody else has: a tunnel's packets of the one say
	// nothing about the other's.
	for i, id := range friendIDs {
		w.addRemote(fmt.Sprintf("friend-%d", i), id, remotes[i])
	}
	w.addRemote("stranger", strangerID, strangers...)
	w.there.NewExporter(w.t, w.objects, flags).Start()
	for _, addr := range slices.Concat(remotes, strangers) {
		w.waitFor(wire.OnDemandEndpointPrefix + addr.String())
	}
	for _, id := range []int{friendID, otherFriendID, strangerID} {
		w.waitFor(wire.OnDemandIdentityPrefix + strconv.Itoa(id))
	}
}

// addRemote makes an endpoint that has opted out.
func (w *world) addRemote(name string, identity uint32, addrs ...netip.Addr) {
	endpoint := &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "hive"},
		Status: ciliumv2.EndpointStatus{
			Identity:   &ciliumv2.EndpointIdentity{ID: int64(identity)},
			Networking: &ciliumv2.EndpointNetworking{NodeIP: netns.ThereIP.String()},
		},
	}
	for _, addr := range addrs {
		pair := &ciliumv2.AddressPair{IPV4: addr.String()}
		if addr.Is6() {
			pair = &ciliumv2.AddressPair{IPV6: addr.String()}
		}
		endpoint.Status.Networking.Addressing = append(endpoint.Status.Networking.Addressing, pair)
	}
	require.NoError(w.t, w.objects.CiliumFakeClientset.Tracker().Add(endpoint))
}

// waitFor waits until the other cluster's etcd has a key.
func (w *world) waitFor(key string) {
	require.Eventually(w.t, func() bool {
		resp, err := w.there.Etcd.Client().Etcd().Get(w.t.Context(), key)
		return err == nil && len(resp.Kvs) == 1
	}, patience, tick, key)
}

// connect says where an agent that is here reads the other cluster.
func (w *world) connect() {
	if !w.through {
		w.here = &mesh.Cluster{Name: hereName, ID: hereID}
		w.remotes = mesh.NewDirectory(w.t).Add(thereName, w.there.Etcd)
		return
	}
	w.here = mesh.NewCluster(w.t, hereName, hereID)
	w.here.EnableRoles(w.t)
	address := freeAddress(w.t)
	w.readThrough = prometheus.NewPedanticRegistry()
	mesh.NewHive(w.t, w.here.Flags(mesh.Flags{
		"kvstore-opt":             etcd.OptConfig + "=" + w.here.Etcd.ConfigAs(w.t, mesh.UserRoot),
		"clustermesh-config":      mesh.NewDirectory(w.t).AddAs(thereName, w.there.Etcd, mesh.UserRemote).Path,
		"enable-heartbeat":        "true",
		"ondemand-listen-address": address,
	}), cells.KVStoreMesh, cell.Invoke(func(m *readthrough.Metrics) error { return w.readThrough.Register(m) })).Start()
	w.flags["ondemand-etcd-config"] = writeConfig(w.t, address)
	w.remotes = mesh.NewDirectory(w.t).AddAs(thereName, w.here.Etcd, mesh.LocalUser(hereName))
}

// newAgent makes an agent whose map, and what it leaves in the kernel, are the rig's.
func (r *rig) newAgent() *mesh.Hive {
	device := netns.Uplink
	if r.tunnel {
		device = netns.Tunnel
	}
	own := mesh.Flags{
		"clustermesh-config": r.remotes.Path, "enable-k8s": "false", "state-dir": r.t.TempDir(),
		"ipcache-backend": ipcache.BackendBPF, "bpf-root": r.bpfRoot, "bpf-ipcache-map-max": "65536",
		"enable-ondemand-resolution": strconv.FormatBool(!r.off), "ondemand-devices": device,
	}
	return mesh.NewHive(r.t, r.here.Flags(own, r.world.flags, r.way.flags), cells.Agent, cell.Invoke(r.use))
}

// use takes what an agent that starts has.
func (r *rig) use(db *statedb.DB, writer *state.Writer, rows statedb.Table[*ondemand.Row], datapath *ipcache.Datapath,
	health statedb.Table[types.Status], metrics *ondemand.Metrics) error {
	r.seen = seen{db, writer.Tables(), rows, datapath, health, prometheus.NewPedanticRegistry()}
	return r.metrics.Register(metrics)
}

// start starts the agent, and what enforces by its map and its identities, and waits
// until the agent knows where the other cluster's pods are.
func (r *rig) start() {
	r.t.Helper()
	r.agent.Start()
	if r.enforcer == nil {
		path, ok := r.datapath.PinPath()
		require.True(r.t, ok, "the map isn't in the kernel")
		var err error
		r.enforcer, err = enforcer.New(path)
		require.NoError(r.t, err)
		r.t.Cleanup(func() { require.NoError(r.t, r.enforcer.Close()) })
		switch index := r.device(); {
		case r.side == bpf.SideDestination: // see addPod
		case r.tunnel:
			require.NoError(r.t, r.enforcer.TunnelSources(index))
		default:
			require.NoError(r.t, r.enforcer.Sources(index))
		}
	}
	r.unfollow = allowFriends(r.t, r.db, r.Identities, r.enforcer)
	r.t.Cleanup(r.unfollow)
	for _, cidr := range netns.TherePods {
		r.eventually(func() bool {
			entry, ok := r.datapath.Lookup(cidr.Addr().Next())
			return ok && entry.TunnelEndpoint() == netns.ThereIP
		}, "the other node's pod CIDR is in the map")
	}
	if !r.off {
		r.eventually(func() bool {
			return strings.HasPrefix(r.healthOf("pod-cidrs"), fmt.Sprintf("%d pod CIDRs of 1 remote", len(netns.TherePods)))
		}, "the kernel looks at the other node's pod CIDRs")
		r.eventually(func() bool { return r.programs(r.device()) > 0 }, "the device has a program")
	}
}

// stop stops the agent.
func (r *rig) stop() {
	r.t.Helper()
	r.unfollow()
	r.agent.Stop()
}

// addPod makes a pod here, with an IPv4 and an IPv6 address.
func (r *rig) addPod(name string, number int) *netns.Pod {
	r.t.Helper()
	pod, err := r.nodes.AddPod(name, netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", number)), netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", number)))
	require.NoError(r.t, err)
	r.answer(pod.Namespace)
	if r.side == bpf.SideDestination {
		require.NoError(r.t, r.enforcer.Destinations(pod.Index))
	}
	if !r.off {
		r.eventually(func() bool { return r.programs(pod.Index) > 0 }, "the pod's interface has a program")
	}
	return pod
}

// device is the node's by which the other one is reached.
func (r *rig) device() int {
	name := netns.Uplink
	if r.tunnel {
		name = netns.Tunnel
	}
	index, err := r.nodes.Here.Index(name)
	require.NoError(r.t, err)
	return index
}

// programs is the number of programs that look at what comes in by an interface, other
// than the enforcer's.
func (r *rig) programs(ifindex int) (n int) {
	attached, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	require.NoError(r.t, err)
	for _, one := range attached.Programs {
		program, err := ebpf.NewProgramFromID(one.ID)
		require.NoError(r.t, err)
		info, err := program.Info()
		require.NoError(r.t, err)
		require.NoError(r.t, program.Close())
		if strings.HasPrefix(info.Name, "waggle_") {
			n++
		}
	}
	return n
}

func (r *rig) answer(n *netns.Namespace) {
	echo, err := n.Echo(port)
	require.NoError(r.t, err)
	r.t.Cleanup(echo.Close)
}

func (r *rig) encapsulate(n *netns.Namespace, to netip.Addr) (e *enforcer.Encapsulator) {
	require.NoError(r.t, n.Do(func() error {
		device, err := net.InterfaceByName(netns.Tunnel)
		if err != nil {
			return err
		}
		e, err = enforcer.Encapsulate(device.Index, to)
		return err
	}))
	r.t.Cleanup(func() { require.NoError(r.t, e.Close()) })
	return e
}

// unmount takes away the BPF file system that the agent has mounted.
func (r *rig) unmount() {
	r.agent.Stop()
	if err := unix.Unmount(r.bpfRoot, unix.MNT_DETACH); err != nil {
		require.ErrorIs(r.t, err, unix.EINVAL) // the agent hasn't been started
	}
}

// healthOf is what a job says of itself, by the last part of its name.
func (r *rig) healthOf(job string) string {
	for status := range r.health.All(r.db.ReadTxn()) {
		if component := status.ID.Component; len(component) > 0 && strings.HasSuffix(component[len(component)-1], job) {
			return status.Message
		}
	}
	return ""
}

// row is what on-demand resolution has of an address.
func (r *rig) row(addr netip.Addr) (row ondemand.Row, ok bool) {
	found, _, ok := r.rows.Get(r.db.ReadTxn(), ondemand.RowByAddr(addr))
	if ok {
		row = *found
	}
	return row, ok
}

// metric is the sum of a metric over what has these labels.
func (r *rig) metric(name string, labels ...string) (sum float64) {
	r.t.Helper()
	return sumOf(r.t, r.metrics, name, labels...)
}

func sumOf(t *testing.T, from prometheus.Gatherer, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if hasLabels(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// hasLabels: labels are names and values in turn.
func hasLabels(m *dto.Metric, labels []string) bool {
	has := map[string]string{}
	for _, label := range m.GetLabel() {
		has[label.GetName()] = label.GetValue()
	}
	for i := 0; i < len(labels); i += 2 {
		if has[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}

// freeAddress is an address of loopback on which nothing listens: here is nobody else.
func freeAddress(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// writeConfig writes the configuration of a client of a read-through.
func writeConfig(t *testing.T, address string) string {
	path := filepath.Join(t.TempDir(), "read-through.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "endpoints:\n- http://%s\n", address), 0o600))
	return path
}

func (r *rig) eventually(condition func() bool, what string) {
	r.t.Helper()
	require.Eventually(r.t, condition, patience, tick, what)
}

// within gives a context for what takes a moment.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
