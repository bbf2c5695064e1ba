/* Copyright Authors of Waggle */
/* SPDX-License-Identifier: Apache-2.0 */

/* What the programs need of the kernel's interface, and no more. It is written down
 * here and not taken from the system's headers so that the objects depend on the
 * compiler alone. Names are the kernel's.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* How the loader reads the definition of a map from BTF: an int as the length of an
 * array, a type as what a pointer points to.
 */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

/* A value that others use too is read or written at once, and anew each time. */
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__u16)__builtin_bswap16(x))
#define htonl(x) ((__u32)__builtin_bswap32(x))
#else
#define htons(x) ((__u16)(x))
#define htonl(x) ((__u32)(x))
#endif

#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

#define EEXIST 17

/* The verdict that leaves the packet to the next program, or to the stack. */
#define TCX_NEXT (-1)

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_RINGBUF 27

#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_F_RDONLY_PROG (1U << 7)
#define BPF_NOEXIST 1
#define BPF_F_TUNINFO_IPV6 (1ULL << 0)
#define BPF_HDR_START_NET 1

/* The view of a packet, as far as it is used: the kernel translates each access by its
 * offset.
 */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
};

struct bpf_tunnel_key {
	__u32 tunnel_id;
	__u32 remote[4];
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_flags;
	__u32 tunnel_label;
	__u32 local[4];
};

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*ktime_get_ns)(void) = (void *)5;
static long (*skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size,
				  __u64 flags) = (void *)20;
static long (*skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;
static long (*skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static long (*skb_load_bytes_relative)(const void *skb, __u32 offset, void *to, __u32 len,
				       __u32 start) = (void *)68;
static void *(*ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static __u64 (*ktime_get_coarse_ns)(void) = (void *)160;
