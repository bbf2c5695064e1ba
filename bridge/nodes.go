// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"

	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// nodeManager is what upstream's node manager is told.
type nodeManager interface {
	NodeUpdated(nodetypes.Node)
	NodeDeleted(nodetypes.Node)
	NodeSync()
}

// nodes brings the nodes of this cluster to the agent. Its own one the agent knows
// better, and those of remote clusters come to it by way of ClusterMesh.
type nodes struct {
	db      *statedb.DB
	table   statedb.Table[*state.Node]
	writer  *state.Writer
	manager nodeManager
	synced  chan struct{}
}

func newNodes(db *statedb.DB, writer *state.Writer, manager nodeManager) *nodes {
	return &nodes{db: db, table: writer.Tables().Nodes, writer: writer, manager: manager, synced: make(chan struct{})}
}

// waitSynced waits until the agent knows the nodes that the table had of this cluster at
// first.
func (n *nodes) waitSynced(ctx context.Context) error {
	select {
	case <-n.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for nodes: %w", ctx.Err())
	}
}

// run follows the table until ctx ends.
func (n *nodes) run(ctx context.Context, health cell.Health) error {
	wtxn := n.db.WriteTxn(n.table)
	changes, err := n.table.Changes(wtxn)
	wtxn.Commit()
	if err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	health.OK("Waiting for nodes")
	complete := ingest.LocalDone(n.writer, n.table)
	for {
		txn := n.db.ReadTxn()
		batch, changed := changes.Next(txn)
		for change := range batch {
			row := change.Object
			if row.Origin.Source != state.SourceLocal || row.Name == nodetypes.GetName() {
				continue
			}
			if node := localNode(&row.Node); change.Deleted {
				n.manager.NodeDeleted(node)
			} else {
				n.manager.NodeUpdated(node)
			}
		}
		// Remote clusters, of which any may be away, are none of its.
		if ingest.LocalComplete(txn, n.table) {
			complete = nil
			select {
			case <-n.synced:
			default:
				n.manager.NodeSync()
				close(n.synced)
				health.OK("Nodes are known to the agent")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-complete:
		}
	}
}

// localNode is a node as upstream makes it of a CiliumNode. The manager takes updates of
// equal or stronger sources only, and the cache's nodes are Kubernetes'.
func localNode(n *wire.Node) nodetypes.Node {
	node := *wire.NodeToUpstream(n)
	node.Source = source.CustomResource
	return node
}
