// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"log/slog"
	"maps"
	"time"

	"golang.org/x/time/rate"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// logInterval and logBurst bound what is logged about one cluster's values: a
// cluster that writes nonsense must not fill our log.
const (
	logInterval = 10 * time.Second
	logBurst    = 10
)

// Refusals counts what a Handler refuses of its cluster, and bounds what it logs
// about the cluster's data. It is not safe for concurrent use.
type Refusals struct {
	counts     map[wire.Reason]uint64
	limit      *rate.Limiter
	suppressed uint64
}

// NewRefusals makes Refusals of nothing.
func NewRefusals() *Refusals {
	return &Refusals{counts: make(map[wire.Reason]uint64), limit: rate.NewLimiter(rate.Every(logInterval), logBurst)}
}

// Refuse counts the refusal of one value, and logs it to log unless there were
// many. An error that isn't a *wire.Refusal counts as malformed.
func (r *Refusals) Refuse(log *slog.Logger, resource wire.Resource, key string, err error) *wire.Refusal {
	var refusal *wire.Refusal
	if !errors.As(err, &refusal) {
		refusal = &wire.Refusal{Resource: resource, Key: key, Reason: wire.ReasonMalformed, Err: err}
	}
	r.counts[refusal.Reason]++
	if suppressed, ok := r.Logs(); ok {
		// The error names the key, shortened: a hostile one may be long.
		log.Warn("Refused a value of a remote cluster", "resource", resource,
			"reason", refusal.Reason, "error", refusal, "suppressed", suppressed)
	}
	return refusal
}

// Logs says whether something may be logged about the cluster's data now, and how
// much wasn't since it last might.
func (r *Refusals) Logs() (suppressed uint64, ok bool) {
	if !r.limit.Allow() {
		r.suppressed++
		return 0, false
	}
	suppressed, r.suppressed = r.suppressed, 0
	return suppressed, true
}

// Counts gives the number of refusals since the start, by reason.
func (r *Refusals) Counts() map[wire.Reason]uint64 { return maps.Clone(r.counts) }
