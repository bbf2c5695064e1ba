// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build ignore

// Programs of tests: what stands in for Cilium's datapath. It drops what comes from, or
// goes to, an identity that isn't allowed, and gives packets the identity in the tunnel
// header that their sender has. See enforcer.go for what is attached where.

// What is needed of the kernel's interface, so that the objects depend on the compiler
// alone.
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __always_inline inline __attribute__((always_inline))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__u16)__builtin_bswap16(x))
#else
#define htons(x) ((__u16)(x))
#endif

enum { TCX_NEXT = -1, TCX_DROP = 2 };
enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_F_ZERO_CSUM_TX = 2 };

// Where the headers have what is looked at.
enum {
	ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd, ETH_HLEN = 14,
	IPV4_SOURCE = ETH_HLEN + 12, IPV4_DESTINATION = ETH_HLEN + 16,
	IPV6_NEXT = ETH_HLEN + 6, IPV6_SOURCE = ETH_HLEN + 8, IPV6_DESTINATION = ETH_HLEN + 24, IPV6_PAYLOAD = ETH_HLEN + 40,
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
};

struct bpf_tunnel_key {
	__u32 tunnel_id;
	__u32 remote_ipv4;
	__u32 remote_rest[3];
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_flags;
	__u32 tunnel_label;
	__u32 local[4];
};

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)20;
static long (*skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)21;
static long (*skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;

// The layout of Cilium's cilium_ipcache_v2. Bits 0-31 of an address are the static ones.
#define STATIC_BITS 32
#define FAMILY_IPV4 1
#define FAMILY_IPV6 2

struct address {
	__u32 prefixlen;
	__u16 cluster;
	__u8 pad;
	__u8 family;
	__u32 ip[4];
};

struct endpoint {
	__u32 identity;
	__u32 tunnel[4];
	__u16 pad;
	__u8 key;
	__u8 flags;
};

// The map that is enforced by; replaced by the agent's when the programs are loaded.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct address);
	__type(value, struct endpoint);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} ipcache SEC(".maps");

// The identities that may.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u8);
	__uint(max_entries, 65536);
} allowed SEC(".maps");

// The identities of this node's own senders, by their addresses.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 65536);
} senders SEC(".maps");

// How many packets: those at PASSED went on, those at DROPPED didn't.
enum { PASSED, DROPPED, VERDICTS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, VERDICTS);
} verdicts SEC(".maps");

// Where encapsulate sends to.
const volatile __u32 tunnel_peer = 0;

#define HOP_BY_HOP 0
#define ICMPV6 58
#define MLD_QUERY 130 // to the last of neighbour discovery
#define ND_REDIRECT 137
#define MLD_REPORT 143

enum side { SOURCE, DESTINATION };

// look reads the address of one side. It is false for what isn't enforced: what is
// neither IPv4 nor IPv6, and what neighbours say to each other.
static __always_inline int look(struct __sk_buff *skb, enum side side, struct address *address)
{
	if (skb->protocol == htons(ETH_P_IP)) {
		address->family = FAMILY_IPV4;
		address->prefixlen = STATIC_BITS + 32;
		return !skb_load_bytes(skb, side == SOURCE ? IPV4_SOURCE : IPV4_DESTINATION, address->ip, 4);
	}
	if (skb->protocol == htons(ETH_P_IPV6)) {
		__u8 next = 0, type = 0;

		skb_load_bytes(skb, IPV6_NEXT, &next, 1);
		skb_load_bytes(skb, next == HOP_BY_HOP ? IPV6_PAYLOAD + 8 : IPV6_PAYLOAD, &type, 1);
		if ((next == ICMPV6 || next == HOP_BY_HOP) && ((type >= MLD_QUERY && type <= ND_REDIRECT) || type == MLD_REPORT))
			return 0;
		address->family = FAMILY_IPV6;
		address->prefixlen = STATIC_BITS + 128;
		return !skb_load_bytes(skb, side == SOURCE ? IPV6_SOURCE : IPV6_DESTINATION, address->ip, 16);
	}
	return 0;
}

static __always_inline int judge(__u32 identity)
{
	__u32 verdict = map_lookup_elem(&allowed, &identity) ? PASSED : DROPPED;
	__u64 *n = map_lookup_elem(&verdicts, &verdict);

	if (n)
		__sync_fetch_and_add(n, 1);
	return verdict == PASSED ? TCX_NEXT : TCX_DROP;
}

static __always_inline int enforce(struct __sk_buff *skb, enum side side)
{
	struct address address = {};
	struct endpoint *found;

	if (!look(skb, side, &address))
		return TCX_NEXT;
	found = map_lookup_elem(&ipcache, &address);
	return judge(found ? found->identity : 0);
}

// For the host's end of a pod: the pod may send to who is allowed.
SEC("tcx/ingress")
int enforce_destination(struct __sk_buff *skb)
{
	return enforce(skb, DESTINATION);
}

// For a device of the node: who is allowed may send to its pods.
SEC("tcx/ingress")
int enforce_source(struct __sk_buff *skb)
{
	return enforce(skb, SOURCE);
}

// The same for a tunnel device, by the identity that the header has.
SEC("tcx/ingress")
int enforce_tunnel(struct __sk_buff *skb)
{
	struct address address = {};
	struct bpf_tunnel_key key = {};

	if (!look(skb, SOURCE, &address))
		return TCX_NEXT;
	skb_get_tunnel_key(skb, &key, sizeof(key), 0);
	return judge(key.tunnel_id);
}

// For a tunnel device that packets leave by: the header has the sender's identity.
SEC("tcx/egress")
int encapsulate(struct __sk_buff *skb)
{
	struct address address = {};
	struct bpf_tunnel_key key = {.remote_ipv4 = tunnel_peer, .tunnel_ttl = 64};
	__u32 *identity;

	if (!look(skb, SOURCE, &address))
		return TCX_NEXT;
	identity = map_lookup_elem(&senders, &address);
	key.tunnel_id = identity ? *identity : 2; // the world's
	return skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX) ? TCX_DROP : TCX_NEXT;
}

char __license[] SEC("license") = "Dual MIT/GPL";
