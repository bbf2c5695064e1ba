// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Outcomes are what a request has come to, as the metrics call it; the set is closed.
const (
	outcomeFound       = "found"
	outcomeNotFound    = "not-found"
	outcomeForbidden   = "forbidden"       // the client's name isn't allowed
	outcomeMalformed   = "malformed"       // not a look-up
	outcomeUnknown     = "unknown-cluster" // there is no such cluster
	outcomeCached      = "cached-layout"   // what is connected is a copy
	outcomeRefused     = "refused"         // what the remote cluster has isn't passed on
	outcomeUnavailable = "unavailable"     // the remote cluster can't be asked
)

var outcomes = []string{outcomeFound, outcomeNotFound, outcomeForbidden, outcomeMalformed, outcomeUnknown,
	outcomeCached, outcomeRefused, outcomeUnavailable}

// failure is why there is no answer, for the client and for the metrics.
type failure struct {
	outcome string
	code    codes.Code
	text    string
}

func fail(outcome string, code codes.Code, format string, args ...any) error {
	return &failure{outcome, code, fmt.Sprintf(format, args...)}
}

func (f *failure) Error() string { return f.text }

// GRPCStatus is what the client is told.
func (f *failure) GRPCStatus() *status.Status {
	return status.New(f.code, "on-demand read-through: "+f.text)
}

// outcomeOf is that of an error of this package; of another it is that the request was
// malformed: those are etcd's own words for what isn't answered.
func outcomeOf(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.outcome
	}
	return outcomeMalformed
}
