// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"github.com/cilium/statedb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// nodeRows is the source of this cluster's CiliumNodes, of what is known of a node
// elsewhere. What only its own agent and the operator need of one isn't there.
func nodeRows(db *statedb.DB, writer *state.Writer, cluster string) *rows[*state.Node] {
	table := writer.Tables().Nodes
	return &rows[*state.Node]{
		db: db, writer: writer, table: table, what: "ciliumnodes",
		keyOf: func(row *state.Node) string { return row.Cluster + "/" + row.Name },
		nameOf: func(row *state.Node) string {
			if row.Origin == nil || row.Origin.Source != state.SourceLocal {
				return ""
			}
			return row.Name
		},
		object: func(txn statedb.ReadTxn, name string) (runtime.Object, bool) {
			row, _, ok := table.Get(txn, state.NodeByName(cluster, name))
			if !ok {
				return nil, false
			}
			node := wire.NodeToUpstream(&row.Node).ToCiliumNode()
			node.Spec.BootID = row.BootID
			return node, true
		},
		bare: func(name string) runtime.Object {
			return &ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
		},
	}
}
