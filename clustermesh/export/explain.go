// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// PartExporter is the Part of what an exporter says.
const PartExporter = "exporter"

// Explanation is what an exporter says about a pod of its cluster: which rules
// apply, what follows for each of its addresses, and what etcd has of them.
type Explanation struct {
	Part    string `json:"part"`
	Cluster string `json:"cluster"`
	Region  string `json:"region,omitempty"`
	// Waits are the tables that aren't complete yet: what is said is then of what
	// is known so far, and nothing is decided on it.
	Waits []string `json:"waits,omitempty"`
	// Written: all that the cluster had at the start is in etcd.
	Written bool `json:"written"`

	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	// NamespaceKnown and PodKnown: there is one, as far as the tables say. A pod
	// without an endpoint is known if it says something, and that is read.
	NamespaceKnown bool                  `json:"namespaceKnown"`
	PodKnown       bool                  `json:"podKnown"`
	PodsRead       bool                  `json:"podsRead"`
	Steps          []filter.Step         `json:"steps"`
	Fate           filter.Fate           `json:"fate"`
	Scope          string                `json:"scope"`
	Endpoints      []EndpointExplanation `json:"endpoints"`

	// EtcdError is why etcd wasn't asked.
	EtcdError string `json:"etcdError,omitempty"`
}

// EndpointExplanation is that of one address of the pod.
type EndpointExplanation struct {
	Address netip.Prefix `json:"address"`
	// Holder is another pod, "namespace/name", that has the address: this one's claim
	// waits for it to go, and what follows says nothing.
	Holder   string   `json:"holder,omitempty"`
	Endpoint Location `json:"endpoint"`
	ID       uint32   `json:"identity"`
	Identity Location `json:"identityKey"`
	// IdentityKnown: there is such an identity; IdentityStep says what becomes of it.
	IdentityKnown bool        `json:"identityKnown"`
	IdentityStep  filter.Step `json:"identityStep"`
	// Waiting are the claims of others on the address.
	Waiting []string `json:"waiting,omitempty"`
}

// Location is where something is to be in etcd, and where it is.
type Location struct {
	Fate filter.Fate `json:"fate"`
	// Key is where it belongs; empty if it is kept.
	Key string `json:"key,omitempty"`
	// Found are the keys that etcd has of it: more than one, or another one, while
	// it moves.
	Found []string `json:"found,omitempty"`
	// Refused is why it can't be encoded: what etcd has of it is then an earlier value.
	Refused string `json:"refused,omitempty"`
}

// explainer answers questions about pods from the tables.
type explainer struct {
	cluster    string
	namespaces filter.NamespacePolicy
	workloads  filter.WorkloadPolicy
	region     string
	tables     state.Tables
}

// explain says what the tables in txn mean for a pod. It walks the table of
// endpoints, for claims that wait and for what else has the pod's identities.
func (x *explainer) explain(txn statedb.ReadTxn, namespace, pod string) Explanation {
	out := Explanation{
		Part: PartExporter, Cluster: x.cluster, Region: x.region,
		Namespace: namespace, Pod: pod,
		PodsRead: x.workloads.ReadsPods(x.region), Waits: x.waits(txn),
	}
	source := x.source(txn, namespace, pod)
	decision := source.Explain()
	out.NamespaceKnown = source.Exists
	out.Steps, out.Fate, out.Scope = decision.Steps, decision.Fate, decision.Scope.String()

	identities := map[uint32]int{} // of the pod, and how many pushed endpoints have them
	for row := range x.tables.Endpoints.All(txn) {
		if row.Origin().Source != state.SourceLocal {
			continue
		}
		if row.Namespace() == namespace && row.Pod() == pod {
			identities[row.Identity()] = 0
			out.Endpoints = append(out.Endpoints, EndpointExplanation{
				Address: row.Prefix(), ID: row.Identity(),
				Endpoint: endpointAt(decision.Fate, row.Prefix()), Waiting: claimants(row),
			})
		} else if slices.ContainsFunc(row.Waiting(), func(c state.Claim) bool {
			return c.Endpoint.Namespace == namespace && c.Endpoint.Pod == pod
		}) {
			out.Endpoints = append(out.Endpoints, EndpointExplanation{
				Address: row.Prefix(), Holder: claimant(row.Claim()),
			})
		}
	}
	x.countUsers(txn, identities)
	for i := range out.Endpoints {
		if e := &out.Endpoints[i]; e.Holder == "" {
			x.explainIdentity(txn, e, identities[e.ID])
		}
	}
	out.PodKnown = len(out.Endpoints) > 0 || !source.Pod.IsZero()
	return out
}

// waits are the tables that the exporter waits for before it decides.
func (x *explainer) waits(txn statedb.ReadTxn) (names []string) {
	for _, table := range []interface {
		statedb.TableMeta
		Initialized(statedb.ReadTxn) (bool, <-chan struct{})
	}{x.tables.Namespaces, x.tables.Workloads, x.tables.Identities, x.tables.Endpoints} {
		if done, _ := table.Initialized(txn); !done {
			names = append(names, table.Name())
		}
	}
	return names
}

// source is what decides about a pod's endpoints.
func (x *explainer) source(txn statedb.ReadTxn, namespace, pod string) filter.Source {
	s := filter.Source{Namespace: namespace, Namespaces: x.namespaces, Workloads: x.workloads, Region: x.region}
	if row, _, found := x.tables.Namespaces.Get(txn, state.NamespaceByName(namespace)); found {
		s.Exists, s.Annotations = true, row.Annotations
	}
	if row, _, found := x.tables.Workloads.Get(txn, state.WorkloadByPod(namespace, pod)); found {
		s.Pod = row.Workload
	}
	return s
}

// countUsers counts the pushed endpoints that have some identities.
func (x *explainer) countUsers(txn statedb.ReadTxn, users map[uint32]int) {
	for row := range x.tables.Endpoints.All(txn) {
		if _, asked := users[row.Identity()]; !asked || row.Origin().Source != state.SourceLocal {
			continue
		}
		s := x.source(txn, row.Namespace(), row.Pod())
		if x.workloads.Endpoint(s.Global(), s.Pod) == filter.Pushed {
			users[row.Identity()]++
		}
	}
}

func (x *explainer) explainIdentity(txn statedb.ReadTxn, e *EndpointExplanation, users int) {
	row, _, found := x.tables.Identities.Get(txn, state.IdentityByID(e.ID))
	e.IdentityKnown = found
	if !found {
		e.IdentityStep = filter.Step{Rule: filter.RuleIdentity, Says: "isn't known yet, so that it has no key"}
		return
	}
	namespace, _ := wire.Label(row.Labels, wire.LabelNamespace)
	fate, says := x.workloads.ExplainIdentity(x.source(txn, namespace, "").Global(), users)
	e.IdentityStep = filter.Step{Rule: filter.RuleIdentity, Says: says}
	e.Identity = identityAt(fate, e.ID)
}

// endpointAt and identityAt are where something of this fate belongs.
func endpointAt(fate filter.Fate, prefix netip.Prefix) Location {
	pushed, onDemand := endpointKeys(prefix)
	return Location{Fate: fate, Key: map[filter.Fate]string{filter.Pushed: pushed, filter.OnDemand: onDemand}[fate]}
}

func identityAt(fate filter.Fate, id uint32) Location {
	pushed, onDemand := identityKeys(id)
	return Location{Fate: fate, Key: map[filter.Fate]string{filter.Pushed: pushed, filter.OnDemand: onDemand}[fate]}
}

func endpointKeys(prefix netip.Prefix) (pushed, onDemand string) {
	// Neither of the two prefixes has a cluster's name in it.
	key := wire.EndpointKey(prefix)
	return wire.StatePrefix(wire.Endpoints, "") + key, wire.OnDemandEndpointPrefix + key
}

func identityKeys(id uint32) (pushed, onDemand string) {
	key := wire.IdentityKey(id)
	return wire.StatePrefix(wire.Identities, "") + key, wire.OnDemandIdentityPrefix + key
}

// keys are all that etcd may have of the pod.
func (e *Explanation) keys() []string {
	keys := map[string]struct{}{}
	for i := range e.Endpoints {
		if e.Endpoints[i].Holder != "" {
			continue
		}
		for _, key := range e.Endpoints[i].keys() {
			keys[key] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

func (e *EndpointExplanation) keys() []string {
	pushed, onDemand := endpointKeys(e.Address)
	identityPushed, identityOnDemand := identityKeys(e.ID)
	return []string{pushed, onDemand, identityPushed, identityOnDemand}
}

// found takes in which of the keys etcd has.
func (e *Explanation) found(has map[string]bool) {
	for i := range e.Endpoints {
		ep := &e.Endpoints[i]
		if ep.Holder != "" {
			continue
		}
		keys := ep.keys()
		missing := func(key string) bool { return !has[key] }
		ep.Endpoint.Found = slices.DeleteFunc(keys[:2:2], missing)
		ep.Identity.Found = slices.DeleteFunc(keys[2:], missing)
	}
}

// refused takes in what can't be encoded.
func (e *Explanation) refused(why func(resource wire.Resource, key string) error) {
	for i := range e.Endpoints {
		ep := &e.Endpoints[i]
		if ep.Holder != "" {
			continue
		}
		if err := why(wire.Endpoints, wire.EndpointKey(ep.Address)); err != nil {
			ep.Endpoint.Refused = err.Error()
		}
		if err := why(wire.Identities, wire.IdentityKey(ep.ID)); err != nil {
			ep.Identity.Refused = err.Error()
		}
	}
}

func claimants(row *state.Endpoint) (names []string) {
	for _, claim := range row.Waiting() {
		names = append(names, claimant(claim))
	}
	return names
}

// claimant is the pod of a claim, with its cluster if that is another one.
func claimant(c state.Claim) string {
	name := c.Endpoint.Namespace + "/" + c.Endpoint.Pod
	if c.Origin.Source != state.SourceLocal {
		return c.Origin.Cluster + "/" + name
	}
	return name
}
