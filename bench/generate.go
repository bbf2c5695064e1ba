// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cluster is the content of one source cluster. It holds nothing: entries are
// worked out as they are asked for, so that a mesh of any size takes no memory.
type Cluster struct {
	Name string
	ID   uint32

	mesh  Mesh
	index int
}

const (
	// localName and localID are the consumer's; the sources come after it.
	localName = "local"
	localID   = 1
)

// Cluster gives the i-th source cluster, from 0.
func (m Mesh) Cluster(i int) Cluster {
	return Cluster{Name: fmt.Sprintf("source-%03d", i+1), ID: localID + 1 + uint32(i), mesh: m, index: i}
}

// Config is the cluster's config, as its exporter writes it.
func (c Cluster) Config() wire.ClusterConfig {
	off := false
	return wire.ClusterConfig{ID: c.ID, Region: c.region(), Capabilities: wire.Capabilities{
		SyncedCanaries:        true,
		MaxConnectedClusters:  c.mesh.MaxConnectedClusters(),
		ServiceExportsEnabled: &off,
	}}
}

// generated are the resources that a Cluster has entries of, with how many.
func (m Mesh) generated() map[wire.Resource]int {
	return map[wire.Resource]int{
		wire.Identities: m.Identities,
		wire.Nodes:      m.Nodes,
		wire.Endpoints:  m.Endpoints,
		wire.Services:   m.Services,
	}
}

// Entries gives fn every entry of a resource that is synced: the key below the
// resource's prefix, and the value. The order, as everything, is the same each time. It
// ends at fn's first error, which it returns, and has errors of its own only
// where wire refuses what it made.
func (c Cluster) Entries(r wire.Resource, fn func(key string, value []byte) error) error {
	if c.mesh.changed && r == wire.Endpoints {
		return c.changedEndpoints(fn)
	}
	entry := map[wire.Resource]func(i int) (string, []byte, error){
		wire.Identities: c.identityEntry,
		wire.Nodes:      c.nodeEntry,
		wire.Endpoints:  c.endpointEntry,
		wire.Services:   c.serviceEntry,
	}[r]
	for i := range c.mesh.generated()[r] {
		if c.fate(r, i) != filter.Pushed {
			continue
		}
		key, value, err := entry(i)
		if err != nil {
			return err
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

// What is drawn at random is drawn from the object's own number, so that any
// object can be made without those before it.
const (
	drawRow = iota
	drawPod
	drawReplicaSet
	drawBoot
	drawReplacement
	drawOptIn
)

func (c Cluster) draw(what, i int) *rand.Rand {
	return rand.New(rand.NewPCG(c.mesh.Seed<<16|uint64(c.index), uint64(what)<<56|uint64(i)))
}

const (
	// podBits and nodeBits are the host parts of 10.0.0.0/8 and 172.16.0.0/12,
	// from which pods and nodes of all clusters have their addresses.
	podBits, nodeBits = 24, 20
	// maxServices is what fits the cluster IPs, 192.168.0.0/16; they are a
	// cluster's own, and the same in each.
	maxServices = 1<<16 - 2
	// firstPod is the number of the first pod's address in a node's pod CIDR:
	// the ones before it are the router's, the health endpoint's and the
	// network's.
	firstPod = 3
)

var (
	podNetwork     = netip.MustParseAddr("10.0.0.0")
	nodeNetwork    = netip.MustParseAddr("172.16.0.0")
	serviceNetwork = netip.MustParseAddr("192.168.0.0")
)

// podBlock is the size of a node's pod CIDR: the smallest that holds its share
// of the endpoints.
func (m Mesh) podBlock() int {
	perNode := (m.Endpoints + m.spare + m.Nodes - 1) / m.Nodes
	return 1 << bits.Len(uint(perNode+firstPod))
}

// node is the number of a node in the whole mesh.
func (c Cluster) node(n int) int { return c.index*c.mesh.Nodes + n }

func (c Cluster) nodeAddress(n int) netip.Addr { return nth(nodeNetwork, c.node(n)+1) }

func (c Cluster) podCIDR(n int) netip.Prefix {
	block := c.mesh.podBlock()
	return netip.PrefixFrom(nth(podNetwork, c.node(n)*block), 32-bits.TrailingZeros(uint(block)))
}

// endpoint gives an endpoint's address and the node that it is on. Endpoints are
// dealt out to the nodes in rows, each row shifted at random: so the pods of a
// workload are spread, and no address is given twice.
func (c Cluster) endpoint(i int) (addr netip.Addr, node int) {
	row, column := i/c.mesh.Nodes, i%c.mesh.Nodes
	node = (column + c.draw(drawRow, row).IntN(c.mesh.Nodes)) % c.mesh.Nodes
	return nth(c.podCIDR(node).Addr(), firstPod+row), node
}

// nth is the address that is n after base, both of IPv4.
func nth(base netip.Addr, n int) netip.Addr {
	b := base.As4()
	sum := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	sum += uint32(n)
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}
