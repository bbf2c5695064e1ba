// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package ondemand makes of a miss in the ipcache slowness instead of failure: it
// hears from the kernel which address of a remote pod a packet has met that the map
// doesn't know, finds out what is there, and puts it into the tables, from which it
// gets into the map as everything does.
//
//	kernel ─signal▶ queue ─▶ resolve: tables → etcd → KVStoreMesh's read-through ─▶ tables ─▶ map
//	                                │                                                  ▲
//	                          nothing there ─▶ negative cache              expiry ─────┘
//
// What comes while a cluster is asked is asked for together: a batch of misses stays one
// all the way.
//
//	types.go        the contract
//	answer.go       how an etcd is asked a question
//	local.go        the etcd by which the agent follows a cluster, as a resolver
//	readthrough.go  KVStoreMesh's read-through, as a resolver
package ondemand

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Question is what a Resolver is asked.
type Question struct {
	// Cluster and ClusterID are those of the remote cluster whose pod CIDR holds Addr.
	Cluster   string
	ClusterID uint32
	Addr      netip.Addr
	// Identity is set when a packet named it: its labels are asked for as well, whatever
	// Addr has. Otherwise those of the identity of the endpoint at Addr are.
	Identity uint32
}

// Answer is what there is. What it says is checked by who asked as what is pushed is.
type Answer struct {
	// Endpoint is nil if there is none at the address.
	Endpoint *wire.Endpoint
	// Identities are the endpoint's and the one that was asked for, as far as they
	// exist; a reserved one isn't among them, and one that the tables have need not be.
	Identities []wire.Identity
}

// Resolved is what a resolver says to one question: an Answer, or why there is none.
//
// Err is ErrNotFound if there is nothing, which is remembered for a short while;
// ErrUnavailable if who would know can't be asked now, of which several in a row keep the
// cluster from being asked for a while; ErrRefused if it must not be asked. Any other
// counts as ErrUnavailable.
type Resolved struct {
	Answer Answer
	Err    error
}

// IPCacheMissResolver finds out what there is at addresses of a remote cluster.
//
// Resolve answers several questions about one cluster, each by itself and in their order:
// what has come while it was asked about others of the cluster. None of them is answered
// before all are; OneByOne is for who can't ask for several at a time. It is called from
// several goroutines, never twice at a time for the same address. Its context ends with
// the lookups' deadline.
type IPCacheMissResolver interface {
	Resolve(ctx context.Context, questions []Question) []Resolved
	// Name is what metrics and lists call it: "table", "local", "read-through".
	Name() string
}

// OneByOne answers questions by a function for one, which is called for all of them at
// the same time, each in a goroutine of its own.
func OneByOne(ctx context.Context, questions []Question, resolve func(context.Context, Question) (Answer, error)) []Resolved {
	results := make([]Resolved, len(questions))
	var asked sync.WaitGroup
	for i, q := range questions {
		asked.Go(func() { results[i].Answer, results[i].Err = resolve(ctx, q) })
	}
	asked.Wait()
	return results
}

var (
	// ErrNotFound says that there is no endpoint at the address, nor any identity that
	// was asked for.
	ErrNotFound = errors.New("nothing is known of it")
	// ErrUnknownIdentity is an ErrNotFound: there is an endpoint, of whose identity nobody
	// knows the labels.
	ErrUnknownIdentity error = unknownIdentity{}
	// ErrUnavailable says that who would know can't be asked.
	ErrUnavailable = errors.New("the remote cluster can't be asked")
	// ErrRefused says that the question isn't one that is answered: of an address that
	// two clusters claim, or by a source that has only a copy.
	ErrRefused = errors.New("refused")
)

type unknownIdentity struct{}

func (unknownIdentity) Error() string { return "its identity isn't known" }
func (unknownIdentity) Unwrap() error { return ErrNotFound }
