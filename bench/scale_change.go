// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
)

// changes are those of a mesh's pods and nodes, each of which alters an entry of
// an agent's map. They remember what each object was changed to, over several
// loads. A pod's address is given to a pod of the next workload, which has another
// identity; a node is replaced by one of the same name with another address, as
// where machines are reinstalled. Their methods are called by one goroutine for
// pods and one for nodes.
type changes struct {
	mesh Mesh
	// pods and nodes count the changes of each object that was changed.
	pods, nodes map[objectOf]int
}

func newChanges(mesh Mesh) *changes {
	return &changes{mesh: mesh, pods: map[objectOf]int{}, nodes: map[objectOf]int{}}
}

// validateChanges says why a mesh can't be changed like this.
func validateChanges(mesh Mesh) error {
	if mesh.Identities < 2 {
		return fmt.Errorf("%d identities: pods that change to another need two", mesh.Identities)
	}
	if mesh.nodeAddresses() < 2 {
		return fmt.Errorf("%d clusters of %d nodes: more than half of 172.16.0.0/12, so that nodes have no other address to change to",
			mesh.Clusters, mesh.Nodes)
	}
	return nil
}

// nodeAddresses is the number of addresses that each node of the mesh can have.
func (m Mesh) nodeAddresses() int { return (1<<nodeBits - 1) / (m.Clusters * m.Nodes) }

// workloadOf is the number of the workload that the i-th pod belongs to after so
// many changes.
func (c Cluster) workloadOf(i, changed int) int { return (i + changed) % c.mesh.Identities }

// addressOf is the address of the n-th node after so many changes.
func (c Cluster) addressOf(n, changed int) netip.Addr {
	generation := changed % c.mesh.nodeAddresses()
	return nth(nodeNetwork, generation*c.mesh.Clusters*c.mesh.Nodes+c.node(n)+1)
}

// nextPod is what a load needs to change pods. Each change is noted in the book,
// and expected in the map.
func (s *changes) nextPod(book *ledger, watch *mapChanges) func(Cluster, int, time.Time) (string, []byte, error) {
	return func(c Cluster, i int, due time.Time) (string, []byte, error) {
		object := objectOf{c.index, i}
		s.pods[object]++
		e := c.endpointObject(i)
		w := c.workload(c.workloadOf(i, s.pods[object]))
		e.Identity, e.Namespace, e.ServiceAccount = w.identity, w.namespace, w.account
		e.Pod = w.name + "-" + letters(c.draw(drawPod, i), 5)
		key, err := keyOf(e.Prefix)
		if err != nil {
			return "", nil, err
		}
		value, err := wire.MarshalEndpoint(&e)
		watch.expect(key, change{e.Identity, book.send(object, due), book})
		return wire.EndpointKey(e.Prefix), value, err
	}
}

// nextNode is nextPod for nodes.
func (s *changes) nextNode(book *ledger, watch *mapChanges) func(Cluster, int, time.Time) (string, []byte, error) {
	return func(c Cluster, i int, due time.Time) (string, []byte, error) {
		object := objectOf{c.index, i}
		s.nodes[object]++
		n := c.nodeObject(i)
		n.Addresses[0].IP = c.addressOf(i, s.nodes[object])
		n.BootID = uuid(c.draw(drawBoot, s.nodes[object]<<32|i))
		key, err := keyOf(singleAddress(n.Addresses[0].IP))
		if err != nil {
			return "", nil, err
		}
		value, err := wire.MarshalNode(&n)
		watch.expect(key, change{remoteNode, book.send(object, due), book})
		return n.Name, value, err
	}
}

// remoteNode is the identity of nodes of other clusters, as upstream's
// pkg/identity numbers it.
const remoteNode = 6

// inMap are the entries that the endpoints and nodes' own addresses of the mesh
// have in an agent's map, with their identities.
func (s *changes) inMap() (map[ipcache.Key]uint32, error) {
	m := s.mesh
	identities := make(map[ipcache.Key]uint32, m.Clusters*(m.Endpoints+m.Nodes))
	add := func(prefix netip.Prefix, identity uint32) error {
		key, err := keyOf(prefix)
		identities[key] = identity
		return err
	}
	for n := range m.Clusters {
		c := m.Cluster(n)
		for i := range m.Endpoints {
			addr, _ := c.endpoint(i)
			w := c.workload(c.workloadOf(i, s.pods[objectOf{n, i}]))
			if err := add(singleAddress(addr), w.identity); err != nil {
				return nil, err
			}
		}
		for i := range m.Nodes {
			if err := add(singleAddress(c.addressOf(i, s.nodes[objectOf{n, i}])), remoteNode); err != nil {
				return nil, err
			}
		}
	}
	return identities, nil
}

func singleAddress(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func keyOf(prefix netip.Prefix) (ipcache.Key, error) {
	key, ok := ipcache.NewKey(prefix)
	if !ok {
		return key, fmt.Errorf("%s can't be in a map", prefix)
	}
	return key, nil
}
