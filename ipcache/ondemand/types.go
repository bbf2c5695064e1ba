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
//	types.go        the contract
//	answer.go       how an etcd is asked a question
//	local.go        the etcd by which the agent follows a cluster, as a resolver
//	readthrough.go  KVStoreMesh's read-through, as a resolver
package ondemand

import (
	"context"
	"errors"
	"net/netip"

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

// IPCacheMissResolver finds out what there is at an address of a remote cluster.
//
// Resolve is called from several goroutines, never twice at a time for the same
// address. Its context ends with the lookup's deadline. It returns an error for what
// it couldn't find out: ErrNotFound if there is nothing, which is remembered for a
// short while; ErrUnavailable if who would know can't be asked now, of which several
// keep the cluster from being asked for a while; ErrRefused if it must not be asked.
// Any other counts as ErrUnavailable.
type IPCacheMissResolver interface {
	Resolve(ctx context.Context, question Question) (Answer, error)
	// Name is what metrics and lists call it: "table", "local", "read-through".
	Name() string
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
