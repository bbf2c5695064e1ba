// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"

	"github.com/waggle-mesh/waggle/cells/state"
)

// convertNamespace keeps of a Namespace what the filters read.
func convertNamespace(obj *slim_corev1.Namespace, _ report) (state.Namespace, bool) {
	return state.Namespace{Name: obj.Name, Annotations: obj.Annotations, Labels: obj.Labels}, true
}

func applyNamespace(tx *state.Txn, c change[state.Namespace], _ memory[struct{}]) struct{} {
	if c.deleted {
		tx.DeleteNamespace(c.object)
	} else {
		tx.UpsertNamespace(c.rows)
	}
	return struct{}{}
}
