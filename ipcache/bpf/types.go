// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package bpf notices, in the kernel, packets to and from addresses of remote
// clusters' pods that the ipcache map doesn't know.
//
//	types.go    the contract
//	c/          the programs: miss.c looks, maps.h has the maps and the signal
//	generate.go how they are compiled
//	config.go   what they are told when they are loaded
//	kernel.go   Open and Close; probe.go tries what the kernel can
//	pins.go     what is pinned, and whose it is
//	programs.go the programs, and what map they read
//	links.go    on and off an interface, and over a restart
//	interfaces.go  which interfaces, as they come and go; patterns.go, netns.go
//	signals.go  the ring buffer
//	cidrs.go    the remote pod CIDRs
//	seen.go     when addresses were last used
//	stats.go    the counters; measure.go, what a packet costs
//	remove.go   all of it away
//
// The programs run at the head of the TCX chain of an interface, look, and always let
// the packet go on (TCX_NEXT): they decide about no packet, and whether it is dropped
// is up to whoever comes after. What they do for each packet:
//
//	address ──▶ verdict of the last 100 ms ──known, or none of a remote pod──▶ go on (nearly always)
//	                  │ none
//	                  ▼
//	            remote pod CIDRs ──none──▶ go on
//	                  │
//	                  ▼
//	            ipcache map ──an identity──▶ stamp "last seen", if that is asked for the address; go on
//	                  │ no entry, world, or a CIDR's identity
//	                  ▼
//	            rate limits ──▶ SIGNAL_IPCACHE_MISS on the ring buffer; go on
package bpf

import (
	"net/netip"
	"time"
)

// Side says which end of a packet isn't known.
type Side uint8

const (
	// SideDestination is the address that a local pod sends to.
	SideDestination Side = iota + 1
	// SideSource is where a packet that arrives comes from.
	SideSource
)

// String names the side as metrics do.
func (s Side) String() string {
	switch s {
	case SideDestination:
		return "destination"
	case SideSource:
		return "source"
	}
	return "unknown"
}

// Kind is what an interface is, which decides which program it gets.
type Kind uint8

const (
	// KindPod is the host's end of a pod's veth pair: what comes in there is what the
	// pod sends, and its destination is looked at.
	KindPod Kind = iota + 1
	// KindUplink is a device of the node: the source of what comes in is looked at.
	KindUplink
	// KindTunnel is a tunnel device that takes its parameters from each packet
	// ("external" in the words of ip-link): the source inside, and the identity that
	// the tunnel header has as its VNI, are looked at.
	KindTunnel
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindPod:
		return "pod"
	case KindUplink:
		return "uplink"
	case KindTunnel:
		return "tunnel"
	}
	return "unknown"
}

// Miss is one SIGNAL_IPCACHE_MISS.
type Miss struct {
	// Addr is the address of the remote pod, IPv4 or IPv6, never mapped.
	Addr netip.Addr
	// Identity is that in the tunnel header, 0 where there is none. The signal is given
	// when Addr has no entry, and also when it has one of another identity than this.
	Identity uint32
	// ClusterID is the one that the address's pod CIDR was given with.
	ClusterID uint32
	Side      Side
	// Interface is the index of the interface on which the packet was.
	Interface uint32
	// Time is CLOCK_MONOTONIC when the packet was looked at (bpf_ktime_get_ns).
	Time time.Duration
}

// Stats count packets and signals since the maps were made. They survive a restart of
// the process as the programs do.
type Stats struct {
	// Hits, Misses and Others count packets: known, unknown, and not of a remote pod.
	Hits, Misses, Others uint64
	// Signals were put on the ring buffer; the other misses weren't, for these reasons.
	Signals uint64
	// Repeated: another signal was given for the address within the interval.
	Repeated uint64
	// RateLimited: there were no tokens left for it, see [Config.Rate].
	RateLimited uint64
	// RingFull: user space didn't keep up.
	RingFull uint64
}
