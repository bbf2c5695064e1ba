// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"maps"
	"math"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
)

// Filters are the sync filters of a mesh. Whole workloads opt in, as their pods have
// the annotation from a template: in each cluster the nearest whole number of them,
// spread evenly over its workloads.
type Filters struct {
	// OptIn is the share of workloads whose pods are pushed, and Regional the share
	// of these that stay in their region.
	OptIn    float64 `json:"opt_in"`
	Regional float64 `json:"regional"`
	// Regions is the number of regions, over which the source clusters are dealt out.
	// The consumer is in the first one's.
	Regions int `json:"regions"`
}

func (f Filters) validate(m Mesh) error {
	switch {
	case f.OptIn <= 0 || f.OptIn > 1 || f.Regional < 0 || f.Regional > 1:
		return errors.New("the share that opts in must be above 0 % and at most 100 %, the regional one of it between 0 % and 100 %")
	case f.optedIn(m) == 0:
		return fmt.Errorf("%g %% of %d workloads is none", 100*f.OptIn, m.Identities)
	case f.Regions < 1:
		return errors.New("there must be a region")
	}
	return nil
}

// optedIn is the number of workloads of a cluster that opt in, and regional of those
// that stay in their region.
func (f Filters) optedIn(m Mesh) int  { return int(math.Round(f.OptIn * float64(m.Identities))) }
func (f Filters) regional(m Mesh) int { return int(math.Round(f.Regional * float64(f.optedIn(m)))) }

// optIn is how the source clusters decide where there are filters.
var optIn = filter.WorkloadPolicy{Mode: filter.SyncOptIn}

// regionName is the name of a region, from 0.
func regionName(n int) string { return fmt.Sprintf("region-%d", n+1) }

// region is that of the cluster; none without filters.
func (c Cluster) region() string {
	if c.mesh.filters == nil {
		return ""
	}
	return regionName(c.index % c.mesh.filters.Regions)
}

// annotations are those of a workload's pods. They have them whether or not anybody
// reads them.
func (f Filters) annotations(c Cluster, workload int) map[string]string {
	all, opted, regional := c.mesh.Identities, f.optedIn(c.mesh), f.regional(c.mesh)
	at := (workload + c.draw(drawOptIn, 0).IntN(all)) % all
	k := at * opted / all // of those that opt in
	switch {
	case k == (at+1)*opted/all:
		return nil
	case k*regional/opted == (k+1)*regional/opted:
		return map[string]string{filter.SyncKey: "true"}
	}
	return map[string]string{filter.SyncKey: "true", filter.ScopeKey: "regional"}
}

// fate is what becomes of the i-th object of a resource in its cluster's etcd.
// Without filters all are pushed.
func (c Cluster) fate(r wire.Resource, i int) filter.Fate {
	filters := c.mesh.filters
	if c.mesh.onDemand && (r == wire.Endpoints || r == wire.Identities) {
		return filter.OnDemand
	}
	if filters == nil || r != wire.Endpoints && r != wire.Identities {
		return filter.Pushed
	}
	says := filter.ParseWorkload(nil, filters.annotations(c, i%c.mesh.Identities))
	fate := optIn.Endpoint(true, says)
	if r == wire.Identities {
		return optIn.Identity(true, fate == filter.Pushed && i < c.mesh.Endpoints)
	}
	return fate
}

// scope is how far the endpoints of a workload are synced.
func (c Cluster) scope(workload int) wire.Scope {
	if c.mesh.filters == nil {
		return wire.ScopeGlobal
	}
	return filter.Scope(filter.ParseWorkload(nil, c.mesh.filters.annotations(c, workload)), c.region())
}

// replacements are the pods of a mesh after some of them were replaced. They are of
// one goroutine at a time.
type replacements struct {
	mesh Mesh
	// gone are the pods that were replaced, each once.
	gone map[objectOf]struct{}
}

func newReplacements(mesh Mesh) *replacements {
	return &replacements{mesh: mesh, gone: map[objectOf]struct{}{}}
}

// endpoint is the i-th endpoint of a cluster as it is now.
func (p *replacements) endpoint(c Cluster, i int) wire.Endpoint {
	if _, gone := p.gone[objectOf{c.index, i}]; gone {
		return c.replacement(i)
	}
	return c.endpointObject(i)
}

// replacement is the i-th endpoint after its pod was replaced by one of the same
// workload: with another name and address.
func (c Cluster) replacement(i int) wire.Endpoint {
	e := c.endpointObject(i)
	addr, node := c.endpoint(c.mesh.Endpoints + i)
	e.Prefix, e.HostIP = singleAddress(addr), c.nodeAddress(node)
	e.Pod = c.workload(i%c.mesh.Identities).name + "-" + letters(c.draw(drawReplicaSet, i%c.mesh.Identities), 10) +
		"-" + letters(c.draw(drawReplacement, i), 5)
	return e
}

// crosses says whether an endpoint that is pushed comes to the consumer.
func (c Cluster) crosses(e *wire.Endpoint) bool {
	return c.mesh.filters == nil || filter.Crosses(e.Scope, c.region(), regionName(0))
}

// eachEndpoint gives fn the endpoints of a cluster that have this fate.
func (p *replacements) eachEndpoint(c Cluster, fate filter.Fate, fn func(*wire.Endpoint) error) error {
	for i := range p.mesh.Endpoints {
		if c.fate(wire.Endpoints, i) != fate {
			continue
		}
		e := p.endpoint(c, i)
		if err := fn(&e); err != nil {
			return err
		}
	}
	return nil
}

// atSource is what belongs into the etcd of a cluster's own, by prefix; without its
// services, whose addresses the API server has chosen.
func (p *replacements) atSource(c Cluster) (map[string]digest, error) {
	out := map[string]digest{}
	for fate, prefixes := range map[filter.Fate][2]string{
		filter.Pushed:   {wire.StatePrefix(wire.Endpoints, c.Name), wire.StatePrefix(wire.Identities, c.Name)},
		filter.OnDemand: {wire.OnDemandEndpointPrefix, wire.OnDemandIdentityPrefix},
	} {
		var endpoints, identities digest
		err := p.eachEndpoint(c, fate, endpoints.addEndpoint)
		for i := range p.mesh.Identities {
			if c.fate(wire.Identities, i) == fate && err == nil {
				err = identities.addEntry(c.identityEntry(i))
			}
		}
		if err != nil {
			return nil, err
		}
		out[prefixes[0]], out[prefixes[1]] = endpoints, identities
	}
	var nodes digest
	if err := c.Entries(wire.Nodes, func(key string, value []byte) error { nodes.add(key, value); return nil }); err != nil {
		return nil, err
	}
	out[wire.StatePrefix(wire.Nodes, c.Name)] = nodes
	maps.DeleteFunc(out, func(_ string, d digest) bool { return d.entries == 0 })
	return out, nil
}

func (d *digest) addEndpoint(e *wire.Endpoint) error {
	value, err := wire.MarshalEndpoint(e)
	return d.addEntry(wire.EndpointKey(e.Prefix), value, err)
}

func (d *digest) addEntry(key string, value []byte, err error) error {
	if err == nil {
		d.add(key, value)
	}
	return err
}

// atConsumer is what belongs into the consumer's etcd, by prefix; without the
// services of clusters that have exporters.
func (p *replacements) atConsumer() (map[string]digest, error) {
	out, err := expected(p.mesh)
	if err != nil {
		return nil, err
	}
	for n := range p.mesh.Clusters {
		c := p.mesh.Cluster(n)
		if n < p.mesh.exported {
			delete(out, wire.CachePrefix(wire.Services, c.Name))
		}
		var d digest
		err := p.eachEndpoint(c, filter.Pushed, func(e *wire.Endpoint) error {
			if c.crosses(e) {
				return d.addEndpoint(e)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if out[wire.CachePrefix(wire.Endpoints, c.Name)] = d; d.entries == 0 {
			delete(out, wire.CachePrefix(wire.Endpoints, c.Name))
		}
	}
	return out, nil
}

// inMap are the entries of an agent's map that endpoints and nodes' own addresses
// have, with their identities.
func (p *replacements) inMap() (map[ipcache.Key]uint32, error) {
	nodes := p.mesh // as they are, without endpoints
	nodes.Endpoints, nodes.spare = 0, nodes.Endpoints+nodes.spare
	out, err := newChanges(nodes).inMap()
	if err != nil {
		return nil, err
	}
	for n := range p.mesh.Clusters {
		c := p.mesh.Cluster(n)
		err := p.eachEndpoint(c, filter.Pushed, func(e *wire.Endpoint) error {
			if !c.crosses(e) {
				return nil
			}
			key, err := keyOf(e.Prefix)
			out[key] = e.Identity
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
