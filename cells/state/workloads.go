// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

// A pod goes before its endpoints do: slices lag behind by half a second and more, and
// an endpoint whose agent is away stays until it is collected as garbage. An endpoint
// that is about to go must not become global, or move to where others look it up, for
// that time. So what a deleted pod said last stands until its last endpoint goes.
//
// Its endpoints are the rows that it has: a claim that waits for an address of another
// pod is in no index by pods, and doesn't keep the last word.

// podName names a pod of this cluster.
type podName struct{ namespace, pod string }

// UpsertWorkload makes or updates what a pod that is there says about itself; in the
// place of the last word of one of that name if there is one.
func (tx *Txn) UpsertWorkload(workload Workload) {
	workload.Gone = false
	old, _, found := tx.w.tables.workloads.Get(tx.wtxn, WorkloadByPod(workload.Namespace, workload.Pod))
	if found && *old == workload {
		return
	}
	if found && old.Gone {
		tx.gone--
	}
	_, _, err := tx.w.tables.workloads.Insert(tx.wtxn, &workload)
	must(err)
}

// DeleteWorkload removes what a pod says about itself, or said last: at once, since it is
// there and says nothing.
func (tx *Txn) DeleteWorkload(namespace, pod string) {
	old, _, found := tx.w.tables.workloads.Get(tx.wtxn, WorkloadByPod(namespace, pod))
	if !found {
		return
	}
	if old.Gone {
		tx.gone--
	}
	_, _, err := tx.w.tables.workloads.Delete(tx.wtxn, old)
	must(err)
}

// ReleaseWorkload removes what a pod that was deleted said about itself once it has no
// endpoint: with the Commit of this Txn, or of the one that removes its last endpoint.
func (tx *Txn) ReleaseWorkload(namespace, pod string) {
	old, _, found := tx.w.tables.workloads.Get(tx.wtxn, WorkloadByPod(namespace, pod))
	if !found || old.Gone {
		return
	}
	row := *old
	row.Gone = true
	_, _, err := tx.w.tables.workloads.Insert(tx.wtxn, &row)
	must(err)
	tx.gone++
	tx.left = append(tx.left, podName{namespace, pod})
}

// leave takes note that row has taken the place of old; either may be nil. While no row
// is Gone it costs a comparison, and otherwise two lookups at Commit for each endpoint
// that goes (BenchmarkReleaseWorkload).
func (tx *Txn) leave(old, row *Endpoint) {
	if tx.w.gone+tx.gone == 0 || old == nil || old.Origin().Source != SourceLocal {
		return
	}
	if row != nil && row.shared == old.shared && row.pod == old.pod {
		return
	}
	tx.left = append(tx.left, podName{old.Namespace(), old.Pod()})
}

// dropGone removes, before the Txn is committed, the last words of the pods that have
// lost their last endpoint.
func (tx *Txn) dropGone() {
	for _, of := range tx.left {
		row, _, found := tx.w.tables.workloads.Get(tx.wtxn, WorkloadByPod(of.namespace, of.pod))
		if !found || !row.Gone {
			continue
		}
		if _, _, has := tx.w.tables.endpoints.Get(tx.wtxn, LocalEndpointsByPod(of.namespace, of.pod)); !has {
			tx.DeleteWorkload(of.namespace, of.pod)
		}
	}
	tx.w.gone += tx.gone
}
