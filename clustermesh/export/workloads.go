// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// filters are the flags that decide what leaves the cluster.
type filters struct {
	// namespace says whether a namespace is global.
	namespace func(*state.Namespace) bool
	workload  filter.WorkloadPolicy
	region    string
}

// workloads knows what pods say, where that is asked.
type workloads struct {
	filters
	table   statedb.Table[*state.Workload]
	changes statedb.ChangeIterator[*state.Workload]
	// txn is that of the present round.
	txn statedb.ReadTxn
}

// reads says whether what pods say makes a difference.
func (w *workloads) reads() bool { return w.workload.ReadsPods(w.region) }

// optIn says whether there are two places for endpoints and identities.
func (w *workloads) optIn() bool { return w.workload.Mode == filter.SyncOptIn }

// of is what the pod of an endpoint says. Where pods are read it costs the key of
// a lookup.
func (w *workloads) of(endpoint *state.Endpoint) filter.Workload {
	if !w.reads() {
		return filter.Workload{}
	}
	row, _, found := w.table.Get(w.txn, state.WorkloadByPod(endpoint.Namespace(), endpoint.Pod()))
	if !found {
		return filter.Workload{}
	}
	return row.Workload
}
