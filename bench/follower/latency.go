// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The range of latencies, in microseconds, and the digits that are kept of each.
const (
	shortest = 1
	longest  = int64(time.Hour / time.Microsecond)
	digits   = 3
)

// NewHistogram makes a histogram of latencies in microseconds, from 1 µs to an
// hour, of three digits. It isn't safe for concurrent use.
func NewHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(shortest, longest, digits) }

// Record adds a latency; one that is out of range counts as the nearest in it.
func Record(h *hdrhistogram.Histogram, latency time.Duration) {
	_ = h.RecordValue(min(max(latency.Microseconds(), shortest), longest)) // in range
}
