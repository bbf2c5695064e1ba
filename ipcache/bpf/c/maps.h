/* Copyright Authors of Waggle */
/* SPDX-License-Identifier: Apache-2.0 */

/* The maps, and the signal. Sizes that depend on the configuration are set by the
 * loader, as the constants are.
 */
#pragma once

#include "kernel.h"

/* An address of either family; an IPv4 address is in the last four bytes, after
 * ::ffff:, so that the two never look alike.
 */
union address {
	__u8 bytes[16];
	__u32 words[4];
	__u64 halves[2];
};

/* The numbers of families in keys of the ipcache. */
enum {
	FAMILY_IPV4 = 1,
	FAMILY_IPV6 = 2,
};

/* The layout of Cilium's cilium_ipcache_v2; ipcache/entry.go says more of it. */
struct ipcache_key {
	__u32 prefix_len;
	__u16 cluster_id;
	__u8 pad;
	__u8 family;
	union {
		__u32 ip4;
		__u32 ip6[4];
	};
};

struct ipcache_value {
	__u32 identity;
	__u8 tunnel[16];
	__u16 pad;
	__u8 encrypt_key;
	__u8 flags;
};

/* Bits of a key before the address, which prefix_len counts. */
#define STATIC_PREFIX_BITS 32

/* The map that the datapath reads: Cilium's own or ours. The loader puts it here. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_value);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
} waggle_ipcache SEC(".maps");

/* The pod CIDRs of remote clusters, and the ID of the cluster that each is of. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct ipcache_key);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
} waggle_cidrs SEC(".maps");

/* When addresses were last seen, on CLOCK_MONOTONIC, 0 for never. User space puts in
 * those that it wants to know about; programs only store into what is there, so that
 * all other packets cost a look-up and no write.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union address);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} waggle_seen SEC(".maps");

/* What was found out of an address, for a moment and for one CPU. The ipcache is a trie,
 * and a look-up in a large one takes ten times as long as all else that is done here.
 * An address has one line, which it shares with others: who comes last has it.
 */
enum {
	VERDICT_NONE = 0,
	VERDICT_OTHER, /* of no remote pod CIDR */
	VERDICT_KNOWN, /* has an entry */
};

struct verdict {
	union address addr;
	__u64 time;
	__u32 identity; /* that of the entry */
	__u32 verdict;
};

#define VERDICTS_BITS 11

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct verdict);
	__uint(max_entries, 1 << VERDICTS_BITS);
} waggle_verdicts SEC(".maps");

/* When a signal was last given for an address, or, if the address is zero, for an
 * identity. The ones that were used least recently make room for new ones.
 */
struct signal_key {
	union address addr;
	__u32 identity;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct signal_key);
	__type(value, __u64);
	__uint(max_entries, 16384);
} waggle_signals SEC(".maps");

/* A token bucket, as the time up to which its tokens are spent: it is full if that is
 * in the past, and empty if it is further in the future than a whole bucket takes to
 * fill. One word, so that a compare-and-swap takes a token.
 *
 * An interface has a fixed number of them, so that what it may signal has a bound: a
 * pod's has one for each cluster and one for all of them, a device's one for each slice
 * of the sources, and both have one for who was held back before.
 */
enum {
	BUCKET_CLUSTER = 1, /* number is the cluster's ID */
	BUCKET_ALL,
	BUCKET_SLICE,
	BUCKET_HELD_BACK,
};

struct bucket_key {
	__u32 ifindex;
	__u32 what;
	__u32 number;
};

/* How many slices the sources on a device have. Go's sourceSlices is the same number. */
#define SLICES 60

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct bucket_key);
	__type(value, __u64);
	__uint(max_entries, 32768);
} waggle_buckets SEC(".maps");

/* What there was no token for: part of a hash of it, and since when, in steps of 2^20 ns.
 * A line is shared by what has the same rest of the hash; who comes last has it.
 */
#define HELD_BACK_BITS 18

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1 << HELD_BACK_BITS);
} waggle_held_back SEC(".maps");

/* Per CPU; Go's Stats says what they count. */
struct counters {
	__u64 hits;
	__u64 misses;
	__u64 others;
	__u64 signals;
	__u64 repeated;
	__u64 rate_limited;
	__u64 ring_full;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, 1);
} waggle_counters SEC(".maps");

/* The signals, for user space. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} waggle_misses SEC(".maps");

/* Cilium numbers its signals from 0 up and keeps a set of them in 64 bits (its
 * lib/signal.h and pkg/signal): this is the first number that it can't come to use.
 */
#define SIGNAL_IPCACHE_MISS 64
/* A record without a signal, of which nothing else is set. */
#define SIGNAL_NONE 0xffffffff

/* Sides, as Go's Side. */
enum {
	SIDE_DESTINATION = 1,
	SIDE_SOURCE = 2,
};

/* What user space is told: all in the machine's byte order but the address, which is
 * as it is in a packet.
 */
struct ipcache_miss {
	__u32 signal_nr;  /* SIGNAL_IPCACHE_MISS, SIGNAL_NONE */
	__u32 cluster_id; /* whose pod CIDR the address is in */
	__u32 identity;	  /* that in the tunnel's header, 0 if there is none */
	__u32 ifindex;	  /* where the packet was */
	__u64 time;	  /* CLOCK_MONOTONIC, ns */
	union address addr;
	__u8 family; /* FAMILY_IPV4, FAMILY_IPV6 */
	__u8 side;   /* SIDE_DESTINATION, SIDE_SOURCE */
	__u8 pad[6];
};

/* BTF has the types of what is in a section; this one is for user space alone. */
const volatile struct ipcache_miss *const volatile unused_ipcache_miss = 0;
