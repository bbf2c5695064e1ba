// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// changedKeys is one in how many keys differs between a Mesh and its Changed.
const changedKeys = 100

// Changed is the same mesh some time later: of one in a hundred of its keys a
// third is gone, a third is new, and a third has another value. All of them are
// endpoints, of which there must be some.
func (m Mesh) Changed() Mesh {
	m.changed = true
	return m
}

// churned is how many endpoints of a cluster differ in its Changed, and of those
// how many were deleted and how many were added. The rest was replaced, and so
// was what would be added where there are too few nodes for it: a node has room
// for one more endpoint.
func (m Mesh) churned() (replaced, deleted, added int) {
	n := min(max(1, m.KeysPerCluster()/changedKeys), m.Endpoints)
	deleted = n / 3
	added = min(n/3, m.Nodes)
	return n - deleted - added, deleted, added
}

// changeOf says what has become of the i-th endpoint. Those that were touched are
// spread evenly, and so are those of them that were deleted.
func (m Mesh) changeOf(i int) (replaced, deleted bool) {
	r, d, _ := m.churned()
	touched := r + d
	k := i * touched / m.Endpoints
	if k == (i+1)*touched/m.Endpoints {
		return false, false
	}
	deleted = k*d/touched != (k+1)*d/touched
	return !deleted, deleted
}

// changedEndpoint is the i-th endpoint in Changed: another pod of its workload.
func (c Cluster) changedEndpoint(i int) (string, []byte, error) {
	e := c.endpointObject(i)
	e.Pod = c.workload(i%c.mesh.Identities).name + "-" + letters(c.draw(drawReplacement, i), 10) + "-" + letters(c.draw(drawPod, i), 5)
	value, err := wire.MarshalEndpoint(&e)
	return wire.EndpointKey(e.Prefix), value, err
}

// difference is one key that differs between a cluster and the same in Changed.
type difference struct {
	key     string // below the prefix of endpoints
	value   []byte
	deleted bool
}

// differences are all that differ.
func (c Cluster) differences() (out []difference, err error) {
	add := func(entry func(int) (string, []byte, error), i int, deleted bool) {
		if err == nil {
			d := difference{deleted: deleted}
			d.key, d.value, err = entry(i)
			out = append(out, d)
		}
	}
	for i := range c.mesh.Endpoints {
		if replaced, deleted := c.mesh.changeOf(i); replaced || deleted {
			add(c.changedEndpoint, i, deleted)
		}
	}
	_, _, added := c.mesh.churned()
	for i := range added {
		add(c.changedEndpoint, c.mesh.Endpoints+i, false)
	}
	return out, err
}

// changedEndpoints gives fn every endpoint of a cluster in Changed.
func (c Cluster) changedEndpoints(fn func(key string, value []byte) error) error {
	_, _, added := c.mesh.churned()
	for i := range c.mesh.Endpoints + added {
		entry := c.endpointEntry
		if i >= c.mesh.Endpoints {
			entry = c.changedEndpoint
		} else if replaced, deleted := c.mesh.changeOf(i); deleted {
			continue
		} else if replaced {
			entry = c.changedEndpoint
		}
		key, value, err := entry(i)
		if err == nil {
			err = fn(key, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
