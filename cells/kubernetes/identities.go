// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"strconv"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/labels"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// convertIdentity gives the identity that a CiliumIdentity stands for. Its name
// is the number, written the one way that strconv writes it: the name is the
// key on the wire, and "007" would be a key that no reader finds.
//
// An identity without labels is refused, as upstream does: an earlier version
// of it stays in force.
func convertIdentity(obj *ciliumv2.CiliumIdentity, report report) (wire.Identity, bool) {
	id, err := strconv.ParseUint(obj.Name, 10, 32)
	if err != nil {
		report(problemName, fmt.Errorf("parsing the name as an identity: %w", err))
		return wire.Identity{}, false
	}
	if canonical := strconv.FormatUint(id, 10); canonical != obj.Name {
		report(problemName, fmt.Errorf("the name %q should be %q", obj.Name, canonical))
		return wire.Identity{}, false
	}
	if len(obj.SecurityLabels) == 0 {
		report(problemLabels, errNoLabels)
		return wire.Identity{}, false
	}
	return wire.Identity{
		ID:     uint32(id),
		Labels: string(labels.Map2Labels(obj.SecurityLabels, "").SortedList()),
	}, true
}

// applyIdentity writes one identity; what it remembers is the number.
func applyIdentity(origin *state.Origin) apply[wire.Identity, uint32] {
	return func(tx *state.Txn, c change[wire.Identity], old memory[uint32]) uint32 {
		if c.deleted {
			tx.DeleteIdentity(origin, old.value)
			return 0
		}
		tx.UpsertIdentity(origin, c.rows)
		return c.rows.ID
	}
}
