// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import "time"

// Phases are the moments at which a subject was done with each phase of a start,
// in seconds since the start of its process. The phases of the clusters overlap
// (one is listed while another is written, and within one list and write go side
// by side), so that these are no durations to be added up: each is when the last
// of all clusters got so far. They are measured from outside, in the same way for
// every subject.
type Phases struct {
	// Connect is when there were as many TCP connections to source etcds as
	// clusters; each subject has one for each cluster.
	Connect float64 `json:"connect"`
	// List is when 99 % of the bytes that it had received from the sources by the
	// time it was ready had been received, by the kernel's accounts of the
	// sockets. The last hundredth is left out since heartbeats and answers to
	// watches come over the same connections.
	List float64 `json:"list"`
	// Write is when the local etcd's kernel had acknowledged 99 % of the bytes
	// that the subject had sent there by the time it was ready.
	Write float64 `json:"write"`
	// Canary is when the local etcd had the last canary. It is 0 of a subject
	// that writes none.
	Canary float64 `json:"canary"`
}

// A phase begins with the first connection, the first hundredth of the bytes, or
// the first canary.
const (
	phaseBegins = 0.01
	phaseEnds   = 0.99
)

// phasesOf works out when a subject that began then was done with each phase,
// and when it had begun with each. The last of the series is from when it was
// ready, or later. Canaries are left alone.
func phasesOf(series []traffic, began time.Time, clusters int) (ends, begins Phases) {
	if len(series) == 0 {
		return ends, begins
	}
	last := series[len(series)-1]
	first := func(reached func(traffic) bool) float64 {
		for _, t := range series {
			if reached(t) {
				return max(0, t.at.Sub(began).Seconds())
			}
		}
		return 0
	}
	share := func(of func(traffic) uint64, part float64) float64 {
		return first(func(t traffic) bool { return of(t) > 0 && float64(of(t)) >= part*float64(of(last)) })
	}
	listed := func(t traffic) uint64 { return t.listed }
	written := func(t traffic) uint64 { return t.written }
	ends.Connect = first(func(t traffic) bool { return t.connections >= min(clusters, last.connections) })
	begins.Connect = first(func(t traffic) bool { return t.connections > 0 })
	ends.List, begins.List = share(listed, phaseEnds), share(listed, phaseBegins)
	ends.Write, begins.Write = share(written, phaseEnds), share(written, phaseBegins)
	return ends, begins
}

// setPhases sets the phases, unless the kernel didn't tell.
func (f *Figures) setPhases(series []traffic, began time.Time, clusters int, arrival *arrival) {
	if len(series) == 0 {
		return
	}
	ends, begins := phasesOf(series, began, clusters)
	// The last look at the sockets was right after it was ready.
	for _, end := range []*float64{&ends.Connect, &ends.List, &ends.Write} {
		*end = min(*end, f.ReadySeconds)
	}
	if !arrival.last.IsZero() {
		ends.Canary, begins.Canary = arrival.last.Sub(began).Seconds(), arrival.first.Sub(began).Seconds()
	}
	f.Phases, f.PhasesBegan = &ends, &begins
}
