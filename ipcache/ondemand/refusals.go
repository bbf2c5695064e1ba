// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// reasonLimit bounds the reason in a row: what is refused may be long, and is the
// remote's to choose.
const reasonLimit = 256

// refusals logs what is refused, of each cluster as much as is logged of what it pushes:
// one that answers nonsense must neither fill our log nor hide another one's.
type refusals struct {
	log *slog.Logger

	mu       sync.Mutex
	clusters map[string]*remote.Refusals
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, clusters: map[string]*remote.Refusals{}}
}

// refuse logs a refusal, unless there were many of the cluster.
func (r *refusals) refuse(q Question, resolver string, err error) {
	reason := "refused"
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		reason = string(refusal.Reason)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	of, ok := r.clusters[q.Cluster]
	if !ok {
		of = remote.NewRefusals()
		r.clusters[q.Cluster] = of
	}
	if suppressed, ok := of.Logs(); ok {
		r.log.Warn("Refused what was answered on demand", "cluster", q.Cluster, "address", q.Addr,
			"identity", q.Identity, "resolver", resolver, "reason", reason, "error", err, "suppressed", suppressed)
	}
}

// keep forgets the clusters that aren't named.
func (r *refusals) keep(clusters map[string]struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cluster := range r.clusters {
		if _, ok := clusters[cluster]; !ok {
			delete(r.clusters, cluster)
		}
	}
}

// shortened is an error's text for a row.
func shortened(err error) string {
	text := []rune(err.Error())
	if len(text) > reasonLimit {
		return string(text[:reasonLimit]) + "…"
	}
	return string(text)
}
