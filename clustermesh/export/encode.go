// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"iter"
	"strings"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// codec says how the rows of one table become keys and values. Its functions
// are pure, and are called by one goroutine.
type codec[Row any] struct {
	resource wire.Resource
	// key is the row's key below the resource's prefix; ok is false for a row
	// that has none there, being another cluster's.
	key func(Row) (key string, ok bool)
	// eligible says whether the row, whatever its namespace, is one to export.
	eligible func(Row) bool
	// namespace is nil where rows are in no namespace.
	namespace func(Row) string
	// says is what the row's pod says about itself; nil where no pod is asked.
	says func(Row) filter.Workload
	// fate decides about a row in a global namespace, or in none where it never is
	// in one, by what pods say; nil pushes it.
	fate func(row Row, says filter.Workload) filter.Fate
	// appendValue appends the row's value to dst.
	appendValue func(dst []byte, row Row, says filter.Workload) ([]byte, error)
	// find is the inverse of key; ok is false for what is no key.
	find func(key string) (query statedb.Query[Row], ok bool)
	// inNamespace lists at least the local rows of a namespace. It is nil where
	// namespace is, and where the table has no index for it.
	inNamespace func(statedb.Table[Row], statedb.ReadTxn, string) iter.Seq2[Row, statedb.Revision]
	// ofPod lists the local rows of a pod; nil where none are of pods.
	ofPod func(table statedb.Table[Row], txn statedb.ReadTxn, namespace, pod string) iter.Seq2[Row, statedb.Revision]
	// identity is the one that a row uses; nil where rows use none.
	identity func(Row) uint32
}

// endpointCodec exports the primary claim of each address. Named ports are for
// this cluster's own agents: upstream's exporter leaves them out. The scope is what
// the pod says, which no row of this cluster does by itself.
func endpointCodec(namedPorts bool, pods *workloads) *codec[*state.Endpoint] {
	return &codec[*state.Endpoint]{
		resource: wire.Endpoints,
		key:      func(row *state.Endpoint) (string, bool) { return wire.EndpointKey(row.Prefix()), true },
		// While a remote cluster's claim is the primary, no local one is left.
		eligible:  func(row *state.Endpoint) bool { return row.Origin().Source == state.SourceLocal },
		namespace: (*state.Endpoint).Namespace,
		says:      pods.of,
		fate: func(_ *state.Endpoint, says filter.Workload) filter.Fate {
			return pods.workload.Endpoint(true, says)
		},
		appendValue: func(dst []byte, row *state.Endpoint, says filter.Workload) ([]byte, error) {
			endpoint := row.Endpoint()
			endpoint.Scope = filter.Scope(says, pods.region)
			if !namedPorts {
				endpoint.NamedPorts = nil
			}
			return wire.AppendEndpoint(dst, &endpoint)
		},
		find: func(key string) (statedb.Query[*state.Endpoint], bool) {
			prefix, err := wire.ParseEndpointKey(key)
			return state.EndpointByPrefix(prefix), err == nil
		},
		inNamespace: func(table statedb.Table[*state.Endpoint], txn statedb.ReadTxn, namespace string) iter.Seq2[*state.Endpoint, statedb.Revision] {
			return table.Prefix(txn, state.LocalEndpointsByNamespace(namespace))
		},
		ofPod: func(table statedb.Table[*state.Endpoint], txn statedb.ReadTxn, namespace, pod string) iter.Seq2[*state.Endpoint, statedb.Revision] {
			return table.List(txn, state.LocalEndpointsByPod(namespace, pod))
		},
		identity: (*state.Endpoint).Identity,
	}
}

// identityCodec has no index by namespace: it would cost more memory than a
// walk over some ten thousand identities costs time, when a namespace flips. used
// says whether a pushed endpoint has an identity; it is asked in the mode in which
// that matters. In the other one nothing decides but the namespace, and no identity
// waits for what pods say.
func identityCodec(policy filter.WorkloadPolicy, used func(identity uint32) bool) *codec[*state.Identity] {
	c := &codec[*state.Identity]{
		resource: wire.Identities,
		key:      func(row *state.Identity) (string, bool) { return wire.IdentityKey(row.ID), true },
		eligible: func(row *state.Identity) bool { return row.Origin.Source == state.SourceLocal },
		namespace: func(row *state.Identity) string {
			namespace, _ := wire.Label(row.Labels, wire.LabelNamespace)
			return namespace
		},
		appendValue: func(dst []byte, row *state.Identity, _ filter.Workload) ([]byte, error) {
			return append(dst, row.Labels...), nil
		},
		find: func(key string) (statedb.Query[*state.Identity], bool) {
			id, err := wire.ParseIdentityKey(key)
			return state.IdentityByID(id), err == nil
		},
	}
	if policy.Mode == filter.SyncOptIn {
		c.fate = func(row *state.Identity, _ filter.Workload) filter.Fate { return policy.Identity(true, used(row.ID)) }
	}
	return c
}

func nodeCodec(cluster string) *codec[*state.Node] {
	return &codec[*state.Node]{
		resource: wire.Nodes,
		key:      func(row *state.Node) (string, bool) { return row.Name, row.Cluster == cluster },
		eligible: func(row *state.Node) bool { return row.Origin.Source == state.SourceLocal },
		appendValue: func(dst []byte, row *state.Node, _ filter.Workload) ([]byte, error) {
			value, err := wire.MarshalNode(&row.Node)
			return append(dst, value...), err
		},
		find: func(key string) (statedb.Query[*state.Node], bool) { return state.NodeByName(cluster, key), true },
	}
}

// serviceCodec exports services that upstream's annotations make shared, or all.
func serviceCodec(cluster string, all bool) *codec[*state.Service] {
	return &codec[*state.Service]{
		resource: wire.Services,
		key: func(row *state.Service) (string, bool) {
			return wire.ServiceKey(row.Namespace, row.Name), row.Cluster == cluster
		},
		eligible: func(row *state.Service) bool {
			return row.Origin.Source == state.SourceLocal && (all || row.Shared)
		},
		namespace: func(row *state.Service) string { return row.Namespace },
		appendValue: func(dst []byte, row *state.Service, _ filter.Workload) ([]byte, error) {
			value, err := wire.MarshalService(row.Service)
			return append(dst, value...), err
		},
		find: func(key string) (statedb.Query[*state.Service], bool) {
			namespace, name, ok := strings.Cut(key, "/")
			return state.ServiceByName(cluster, namespace, name), ok
		},
		inNamespace: func(table statedb.Table[*state.Service], txn statedb.ReadTxn, namespace string) iter.Seq2[*state.Service, statedb.Revision] {
			return table.Prefix(txn, state.ServicesByNamespace(cluster, namespace))
		},
	}
}

func serviceExportCodec(cluster string) *codec[*state.ServiceExport] {
	return &codec[*state.ServiceExport]{
		resource: wire.ServiceExports,
		key: func(row *state.ServiceExport) (string, bool) {
			return wire.ServiceKey(row.Namespace, row.Name), row.Cluster == cluster
		},
		eligible:  func(row *state.ServiceExport) bool { return row.Origin.Source == state.SourceLocal },
		namespace: func(row *state.ServiceExport) string { return row.Namespace },
		appendValue: func(dst []byte, row *state.ServiceExport, _ filter.Workload) ([]byte, error) {
			value, err := wire.MarshalServiceExport(row.ServiceExport)
			return append(dst, value...), err
		},
		find: func(key string) (statedb.Query[*state.ServiceExport], bool) {
			namespace, name, ok := strings.Cut(key, "/")
			return state.ServiceExportByName(cluster, namespace, name), ok
		},
		inNamespace: func(table statedb.Table[*state.ServiceExport], txn statedb.ReadTxn, namespace string) iter.Seq2[*state.ServiceExport, statedb.Revision] {
			return table.Prefix(txn, state.ServiceExportsByNamespace(cluster, namespace))
		},
	}
}
