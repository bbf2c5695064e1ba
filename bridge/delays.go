// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"net/netip"
	"time"

	"github.com/cilium/cilium/pkg/endpoint"
	"github.com/cilium/cilium/pkg/metrics"

	"github.com/waggle-mesh/waggle/cells/state"
)

// localEndpoints are those of this node; it is upstream's endpoint manager.
type localEndpoints interface {
	LookupCEPName(namespacedName string) *endpoint.Endpoint
}

// delays is upstream's metric of how long a pod of this node takes on its way through the
// API server and back. Each counts once, when it first comes back: a pod that is changed
// later isn't new. That the agent itself holds its address in the ipcache, as it does for
// all pods of its node, makes no difference.
type delays struct {
	local localEndpoints
	// seen has a row for each pod of this node that the table has.
	seen map[netip.Prefix]appearance
}

// appearance is an endpoint of this node: a pod may follow another one on its address,
// or of its name.
type appearance struct {
	pod     string
	created time.Time
}

func (d *delays) observe(row *state.Endpoint) {
	if row.Origin().Source != state.SourceLocal || d.local == nil {
		d.gone(row.Prefix())
		return
	}
	pod := row.Namespace() + "/" + row.Pod()
	of := d.local.LookupCEPName(pod)
	if of == nil {
		d.gone(row.Prefix())
		return
	}
	if row.Prefix().Addr().Is6() && of.IPv4.IsValid() {
		return // it counts with its other address
	}
	now := appearance{pod, of.GetCreatedAt()}
	if d.seen[row.Prefix()] == now {
		return
	}
	d.seen[row.Prefix()] = now
	metrics.EndpointPropagationDelay.WithLabelValues().Observe(time.Since(now.created).Seconds())
}

// gone forgets what was at an address.
func (d *delays) gone(prefix netip.Prefix) { delete(d.seen, prefix) }
