// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package ipcache brings the endpoints and nodes of all clusters into the BPF
// map from which the datapath reads which identity an address has, and behind
// which node it is.
//
//	Table "endpoints" ──────────┐
//	                            ├─ wanted ─▶ reconciler, in batches ─▶ Map: BPF LPM trie, or in memory
//	Table "nodes" ──▶ claims ───┘
//
//	types.go        the contract of a Map, and its errors
//	entry.go        key and value, laid out as Cilium's cilium_ipcache_v2
//	rules.go        which entries an endpoint or a node gives; pure
//	claims.go       which claim on a prefix wins; pure
//	wanted.go       what the map is to have
//	reconciler.go   the tables' changes → Map, and what failed again
//	prune.go        the whole of the Map against what is wanted
//	report.go       health and logs of that
//	bpf.go          the Map in the kernel
//	pin.go          where that is pinned, and whose it is; bpffs.go mounts the place
//	memory.go       the Map in memory
//	foreign.go      the map of cilium-agent, for a hive that is in that
//	datapath.go     which of them this process has
//	commands.go     ipcache/list and ipcache/get
//	cell.go         flags and wiring
//
// There is no table of entries and no status of each: an entry is in the map
// when [Datapath.Lookup] finds it, and what isn't as it should be is in health.
package ipcache

import (
	"errors"
	"iter"
	"net/netip"
)

// Map is a longest-prefix-match map from prefixes to identities.
//
// Update, Delete and All are called by the reconciler's one goroutine; All and
// Lookup also by others, at any time. An implementation allows all of it.
type Map interface {
	// Update writes entries, replacing what their prefixes had. It returns nil
	// when all of them were written, else one error (or nil) per entry; one that
	// fails doesn't keep the others out. [ErrFull] says that the map has no room
	// for an entry; it may be tried again after a Delete.
	Update(entries []Entry) []error

	// Delete removes the entries of exactly these prefixes. It returns nil, or
	// one error (or nil) per key. A prefix that isn't there is no error.
	Delete(keys []Key) []error

	// Lookup finds the longest prefix that holds addr, as the datapath does. A
	// match doesn't tell how long it was, so the Entry's prefix is addr itself.
	Lookup(addr netip.Addr) (Entry, bool)

	// All yields every entry in no particular order, ending after the first
	// error. Entries that are written or deleted meanwhile may be missed.
	All() iter.Seq2[Entry, error]

	// Capacity is how many entries fit.
	Capacity() int

	// Restored says whether the map may hold entries of an earlier process.
	Restored() bool

	// String names the kind of the map and where it is, for health and logs.
	String() string

	// Close releases the map. What is pinned stays pinned.
	Close() error
}

var (
	// ErrFull says that the map has as many entries as it may have.
	ErrFull = errors.New("the ipcache map is full")

	// ErrBPFNotPermitted says that this process may not use BPF maps (it lacks
	// the capabilities, or the kernel lacks BPF).
	ErrBPFNotPermitted = errors.New("BPF maps are not permitted here")

	// ErrForeignMap says that the pin belongs to another program's map, which
	// is left alone.
	ErrForeignMap = errors.New("the pinned map belongs to another program")

	// ErrInUse says that another process writes to the maps of this directory.
	ErrInUse = errors.New("another process uses this directory of maps")

	// ErrClosed is returned by operations on a map that isn't open.
	ErrClosed = errors.New("the ipcache map is not open")
)
