// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// Stamp is what an event of a benchmark carries: who reads it knows which event
// it was, and when it was due. It is the name of a pod, so that it travels
// through each program as any other endpoint does.
type Stamp struct {
	// Run tells the rounds of a benchmark from each other.
	Run int
	// Number counts the events of a run, from 1.
	Number int
	// Due is when the event was to be written, by the clock of the machine.
	Due time.Time
}

const (
	stampPrefix = "churn-"
	// podField is how a Stamp begins in a value of the schema.
	podField = `"K8sPodName":"` + stampPrefix
)

// Pod is the Stamp as a pod's name.
func (s Stamp) Pod() string {
	return stampPrefix + strconv.Itoa(s.Run) + "-" + strconv.Itoa(s.Number) + "-" + strconv.FormatInt(s.Due.UnixNano(), 36)
}

// ParseStamp reads a pod's name. ok is false for other pods.
func ParseStamp(pod string) (s Stamp, ok bool) {
	rest, ok := strings.CutPrefix(pod, stampPrefix)
	if !ok {
		return s, false
	}
	run, rest, _ := strings.Cut(rest, "-")
	number, due, _ := strings.Cut(rest, "-")
	var errs [3]error
	s.Run, errs[0] = strconv.Atoi(run)
	s.Number, errs[1] = strconv.Atoi(number)
	nanoseconds, err := strconv.ParseInt(due, 36, 64)
	errs[2] = err
	s.Due = time.Unix(0, nanoseconds)
	return s, errs == [3]error{}
}

// FindStamp reads the value of an endpoint without decoding it: whoever measures
// should take as little of the processor as possible.
func FindStamp(value []byte) (s Stamp, ok bool) {
	i := bytes.Index(value, []byte(podField))
	if i < 0 {
		return s, false
	}
	rest := value[i+len(podField)-len(stampPrefix):]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return s, false
	}
	return ParseStamp(string(rest[:end]))
}
