// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// Outcome is what became of a miss: the name of the resolver that knew, or one of these.
type Outcome string

const (
	// OutcomeTable says that the tables have it; the map has it now, or will in a moment.
	OutcomeTable Outcome = "table"
	// OutcomeNegative says that there is nothing, or there was nothing a moment ago.
	OutcomeNegative Outcome = "negative"
	// OutcomeTimeout says that it took longer than --ondemand-lookup-timeout.
	OutcomeTimeout Outcome = "timeout"
	// OutcomeRefused says that the address isn't a known cluster's alone, or what was answered
	// isn't allowed.
	OutcomeRefused Outcome = "refused"
	// OutcomeUnavailable says that who would know can't be asked.
	OutcomeUnavailable Outcome = "unavailable"
	// OutcomeDropped says that too many others waited.
	OutcomeDropped Outcome = "dropped"
)

// own is the "interface" of lookups that no packet has asked for.
const own uint32 = 0

// lookup is one question, from the miss to the answer. It is under the engine's mu, but
// for what ask and commit are handed.
type lookup struct {
	question Question
	// iface is that of the first miss.
	iface uint32
	// again: there is an answer already, which may no longer be right. The tables,
	// which have that answer, aren't asked.
	again bool
	// misses are those that are answered by it, by side; by hand is none.
	misses [bpf.SideSource + 1]uint64
	// signalled is when the first of them was, CLOCK_MONOTONIC; 0 if there was none.
	signalled time.Duration
	waiters   []chan<- Resolution
	// then is asked after this one: a packet has named another identity meanwhile.
	then *lookup
	// repeated is how often it was asked again since the address's row in the tables had
	// been removed meanwhile.
	repeated int
}

// Resolution is what became of one lookup.
type Resolution struct {
	Question Question
	Outcome  Outcome
	// Err is why there is no entry; nil if there is.
	Err error
}

// join has l answer what other would have asked as well. It is false if it can't, since
// a packet has named another identity than the one that l asks for, and l has begun.
func (l *lookup) join(other *lookup, begun bool) bool {
	if id := other.question.Identity; id != 0 && id != l.question.Identity {
		if begun {
			return false
		}
		l.question.Identity = id // what the last packet says is the truest
	}
	for side, n := range other.misses {
		l.misses[side] += n
	}
	if l.signalled == 0 {
		l.signalled = other.signalled
	}
	l.waiters = append(l.waiters, other.waiters...)
	return true
}

// answered is a lookup with what was found out.
type answered struct {
	*lookup
	answer Answer
	from   string
	// err is set unless the answer is complete; what there is of it counts even so.
	err error
}

// isAnswered says whether somebody has said what there is, or that there is nothing.
func (a *answered) isAnswered() bool { return a.err == nil || outcome(a.err) == OutcomeNegative }

// outcome is that of an answer of which nothing could be used.
func outcome(err error) Outcome {
	var refusal *wire.Refusal
	switch {
	case errors.Is(err, ErrNotFound):
		return OutcomeNegative
	case errors.Is(err, ErrRefused), errors.As(err, &refusal):
		return OutcomeRefused
	case errors.Is(err, context.DeadlineExceeded):
		return OutcomeTimeout
	}
	return OutcomeUnavailable
}
