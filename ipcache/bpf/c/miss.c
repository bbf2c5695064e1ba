/* Copyright Authors of Waggle */
/* SPDX-License-Identifier: Apache-2.0 */

/* Programs for the ingress of interfaces, at the head of the TCX chain. Each looks at
 * one address of a packet and lets the packet go on, whatever it finds.
 */
#include "maps.h"

/* Set by the loader before it loads the programs; the verifier knows them then, and
 * what they rule out isn't even compiled.
 */

/* What comes before the IP header isn't Ethernet's: nothing in WireGuard and tun, the
 * outer headers in some tunnels.
 */
volatile const __u8 no_ethernet = 0;
/* At most one signal for an address in so many nanoseconds. */
volatile const __u64 interval_ns = 200000000;
/* A token takes so long to come back, and a full bucket so long to fill: one of a cluster,
 * that of all clusters, one of a slice.
 */
volatile const __u64 token_ns = 1000000;
volatile const __u64 bucket_ns = 100000000;
volatile const __u64 all_token_ns = 333333;
volatile const __u64 slice_token_ns = 4000000;
volatile const __u64 slice_bucket_ns = 100000000;
/* Keeps senders from choosing whom they share a slice or a line with. */
volatile const __u64 seed = 0;
/* What was found out of an address counts for so long. */
volatile const __u64 recheck_ns = 100000000;
/* Uses are stamped when the last stamp is so old. */
volatile const __u64 stamp_ns = 1000000000;

/* Identities below this one are reserved, and no endpoint's. */
#define MIN_ENDPOINT_IDENTITY 256

/* In terms of the datapath: this address is known only as part of the world. Upstream
 * has an entry with such an identity for each remote pod CIDR, and one for everything.
 */
static __always_inline int is_world(__u32 identity)
{
	return identity == 2 || identity == 9 || identity == 10 || (identity & 0xff000000) == 0x01000000;
}

/* What is known of a packet. */
struct subject {
	struct ipcache_key key;
	union address addr;
	__u32 cluster_id;
	__u32 identity;
	__u8 side;
};

/* More than all headers that may come before the end of an IP header. */
#define HEADERS_LEN 256

/* Reads the IP header, which after Ethernet's is nearly always in the linear part, where
 * it can be read directly. Without Ethernet, the kernel knows where it is, and reads no
 * further than the linear part, which is made longer if it must be. False for a packet
 * that ends before.
 */
static __always_inline int read_header(struct __sk_buff *skb, void *to, __u32 len)
{
	if (!no_ethernet) {
		void *header = (void *)(long)skb->data + ETH_HLEN;
		void *end = (void *)(long)skb->data_end;

		if (likely(header + len <= end)) {
			__builtin_memcpy(to, header, len);
			return 1;
		}
		return skb_load_bytes(skb, ETH_HLEN, to, len) == 0;
	}
	if (likely(skb_load_bytes_relative(skb, 0, to, len, BPF_HDR_START_NET) == 0))
		return 1;
	if (skb_pull_data(skb, skb->len < HEADERS_LEN ? skb->len : HEADERS_LEN) < 0)
		return 0;
	return skb_load_bytes_relative(skb, 0, to, len, BPF_HDR_START_NET) == 0;
}

/* Finds the address. Every fragment of a packet has it. False for what isn't IP. */
static __always_inline int read_address(struct __sk_buff *skb, struct subject *s)
{
	if (skb->protocol == htons(ETH_P_IP)) {
		__u32 header[5]; /* the whole of it, so that a shorter packet is none */

		if (!read_header(skb, header, sizeof(header)))
			return 0;
		s->key.ip4 = s->side == SIDE_SOURCE ? header[3] : header[4];
		s->key.family = FAMILY_IPV4;
		s->key.prefix_len = STATIC_PREFIX_BITS + 32;
		s->addr.words[2] = htonl(0xffff);
		s->addr.words[3] = s->key.ip4;
		return 1;
	}
	if (skb->protocol == htons(ETH_P_IPV6)) {
		__u32 header[10];

		if (!read_header(skb, header, sizeof(header)))
			return 0;
		__builtin_memcpy(&s->addr, s->side == SIDE_SOURCE ? &header[2] : &header[6], sizeof(s->addr));
		/* No packet may have one that is an IPv4 address in disguise. */
		if (!s->addr.halves[0] && s->addr.words[2] == htonl(0xffff))
			return 0;
		__builtin_memcpy(s->key.ip6, &s->addr, sizeof(s->addr));
		s->key.family = FAMILY_IPV6;
		s->key.prefix_len = STATIC_PREFIX_BITS + 128;
		return 1;
	}
	return 0;
}

/* The identity that the tunnel's header carries as its VNI; 0 if it has none, or the
 * reserved identity of a node or of the world, which says nothing of an endpoint.
 */
static __always_inline __u32 tunnel_identity(struct __sk_buff *skb)
{
	struct bpf_tunnel_key tunnel = {};

	if (skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), 0) < 0 &&
	    skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), BPF_F_TUNINFO_IPV6) < 0)
		return 0;
	return tunnel.tunnel_id >= MIN_ENDPOINT_IDENTITY ? tunnel.tunnel_id : 0;
}

/* Spreads both words over all bits, the highest ones best. */
static __always_inline __u64 hash(__u64 a, __u64 b)
{
	__u64 h = (a ^ seed) * 0x9e3779b97f4a7c15ULL;

	h = (h ^ h >> 32 ^ b) * 0xd6e8feb86659fd93ULL;
	return (h ^ h >> 32) * 0x9e3779b97f4a7c15ULL;
}

/* Takes a token of one bucket, if there is one. */
static __always_inline int take_token(struct bucket_key *key, __u64 token, __u64 bucket, __u64 now)
{
	__u64 *spent = map_lookup_elem(&waggle_buckets, key);
	__u64 next = now + token;
	int i;

	if (!spent) {
		if (!map_update_elem(&waggle_buckets, key, &next, BPF_NOEXIST))
			return 1;
		/* Another CPU was first, or there is no room. */
		spent = map_lookup_elem(&waggle_buckets, key);
		if (!spent)
			return 0;
	}
	/* Who loses the race for a token tries for the next. */
	for (i = 0; i < 4; i++) {
		__u64 old = READ_ONCE(*spent);

		next = (old > now ? old : now) + token;
		if (next - now > bucket)
			return 0;
		if (__sync_val_compare_and_swap(spent, old, next) == old)
			return 1;
	}
	return 0;
}

/* Says whether there was no token for this before, at least an interval ago. Who wants
 * something tries again after a while; a scan goes on to the next address.
 */
static __always_inline int was_held_back(struct signal_key *key, __u64 now)
{
	__u64 h = hash(key->addr.halves[0] ^ key->identity, key->addr.halves[1]);
	__u32 line = h >> (64 - HELD_BACK_BITS), since = now >> 20;
	__u64 *held = map_lookup_elem(&waggle_held_back, &line), old;

	if (!held)
		return 0;
	old = READ_ONCE(*held);
	if (old >> 32 == (__u32)h)
		return since - (__u32)old >= (__u32)(interval_ns >> 20);
	WRITE_ONCE(*held, h << 32 | since);
	return 0;
}

/* Takes a token that the interface has for this miss. A pod is on its own, and its
 * clusters share what it may signal. On a device are many: the sources that share a slice
 * with a scan suffer from it, and no others.
 */
static __always_inline int may_signal(struct __sk_buff *skb, struct subject *s, struct signal_key *told, __u64 now)
{
	struct bucket_key key = { .ifindex = skb->ifindex };

	if (s->side == SIDE_DESTINATION) {
		key.what = BUCKET_CLUSTER;
		key.number = s->cluster_id;
		if (take_token(&key, token_ns, bucket_ns, now)) {
			key.what = BUCKET_ALL;
			key.number = 0;
			if (take_token(&key, all_token_ns, bucket_ns, now))
				return 1;
		}
	} else {
		/* A node's pods: of an IPv4 address the first 24 bits, of an IPv6 one 64. */
		__u64 network = s->key.family == FAMILY_IPV4 ? s->addr.words[3] & htonl(0xffffff00)
							      : s->addr.halves[0];

		key.what = BUCKET_SLICE;
		key.number = (hash(network, s->key.family) >> 32) % SLICES;
		if (take_token(&key, slice_token_ns, slice_bucket_ns, now))
			return 1;
	}
	if (!was_held_back(told, now))
		return 0;
	key.what = BUCKET_HELD_BACK;
	key.number = 0;
	return take_token(&key, token_ns, bucket_ns, now);
}

/* Tells user space of a miss, unless it was told recently or is told too much. The
 * order matters: what is limited by rate isn't noted as told, so that it is tried again
 * with the next packet, and a scan of addresses costs one word of memory for each.
 */
static __always_inline void signal_miss(struct __sk_buff *skb, struct subject *s, struct signal_key *key,
					__u64 tick, struct counters *counters)
{
	__u64 *told = map_lookup_elem(&waggle_signals, key);
	__u64 last = told ? READ_ONCE(*told) : 0;
	struct ipcache_miss *miss;
	__u64 now;
	int first;

	if (told && (long long)(tick - last) < (long long)interval_ns)
		goto repeated;
	now = ktime_get_ns();
	if (!may_signal(skb, s, key, now)) {
		counters->rate_limited++;
		return;
	}
	miss = ringbuf_reserve(&waggle_misses, sizeof(*miss), 0);
	if (!miss) {
		counters->ring_full++;
		return;
	}
	if (told)
		first = __sync_val_compare_and_swap(told, last, tick) == last;
	else
		/* If there is no room, better twice than never. */
		first = map_update_elem(&waggle_signals, key, &tick, BPF_NOEXIST) != -EEXIST;
	if (!first) {
		/* Another CPU was. This isn't discarded: a reader that is told of more to come,
		 * and of records behind this one, must find something.
		 */
		miss->signal_nr = SIGNAL_NONE;
		ringbuf_submit(miss, 0);
		goto repeated;
	}
	miss->signal_nr = SIGNAL_IPCACHE_MISS;
	miss->cluster_id = s->cluster_id;
	miss->identity = s->identity;
	miss->ifindex = skb->ifindex;
	miss->time = now;
	miss->addr = s->addr;
	miss->family = s->key.family;
	miss->side = s->side;
	__builtin_memset(miss->pad, 0, sizeof(miss->pad));
	ringbuf_submit(miss, 0);
	counters->signals++;
	return;

repeated:
	counters->repeated++;
}

/* Notes that the address is in use, if that is asked for. */
static __always_inline void stamp(union address *addr, __u64 tick)
{
	__u64 *seen = map_lookup_elem(&waggle_seen, addr);

	if (seen && tick - READ_ONCE(*seen) >= stamp_ns)
		WRITE_ONCE(*seen, tick);
}

/* The line of an address among the verdicts: which one is as good as random. */
static __always_inline struct verdict *verdict_of(union address *addr)
{
	__u64 hash = (addr->halves[0] * 0x9e3779b97f4a7c15ULL ^ addr->halves[1]) * 0xd6e8feb86659fd93ULL;
	__u32 line = hash >> (64 - VERDICTS_BITS);

	return map_lookup_elem(&waggle_verdicts, &line);
}

static __always_inline void note(struct verdict *verdict, union address *addr, __u64 tick, __u32 what,
				 __u32 identity)
{
	verdict->addr = *addr;
	verdict->time = tick;
	verdict->identity = identity;
	verdict->verdict = what;
}

/* For what lasts much longer than a tick of the clock, the time of the last one will do: it
 * is the same clock, for a tenth of the price.
 */
static __always_inline int look(struct __sk_buff *skb, __u8 side, int tunnel)
{
	struct subject s = { .side = side };
	__u64 tick = ktime_get_coarse_ns();
	struct signal_key told = {};
	struct ipcache_value *entry;
	struct counters *counters;
	__u32 *cluster_id, zero = 0;
	struct verdict *verdict;

	counters = map_lookup_elem(&waggle_counters, &zero);
	if (!counters)
		return TCX_NEXT;
	if (!read_address(skb, &s)) {
		counters->others++;
		return TCX_NEXT;
	}
	if (tunnel)
		s.identity = tunnel_identity(skb);

	verdict = verdict_of(&s.addr);
	if (!verdict)
		return TCX_NEXT;
	if (likely(tick - verdict->time < recheck_ns && verdict->addr.halves[0] == s.addr.halves[0] &&
		   verdict->addr.halves[1] == s.addr.halves[1])) {
		if (verdict->verdict == VERDICT_OTHER) {
			counters->others++;
			return TCX_NEXT;
		}
		if (verdict->verdict == VERDICT_KNOWN && (!s.identity || s.identity == verdict->identity)) {
			counters->hits++;
			return TCX_NEXT;
		}
	}

	cluster_id = map_lookup_elem(&waggle_cidrs, &s.key);
	if (!cluster_id) {
		note(verdict, &s.addr, tick, VERDICT_OTHER, 0);
		counters->others++;
		return TCX_NEXT;
	}
	s.cluster_id = *cluster_id;

	entry = map_lookup_elem(&waggle_ipcache, &s.key);
	if (entry && !is_world(entry->identity)) {
		stamp(&s.addr, tick);
		note(verdict, &s.addr, tick, VERDICT_KNOWN, entry->identity);
		if (!s.identity || s.identity == entry->identity) {
			counters->hits++;
			return TCX_NEXT;
		}
		/* Policy goes by the header, so that its identity is what must be known. */
		told.identity = s.identity;
	} else {
		told.addr = s.addr;
	}
	counters->misses++;
	signal_miss(skb, &s, &told, tick, counters);
	return TCX_NEXT;
}

/* On the host's end of a pod's veth pair: what the pod sends. */
SEC("tcx/ingress")
int waggle_pod(struct __sk_buff *skb)
{
	return look(skb, SIDE_DESTINATION, 0);
}

/* On a device of the node: what arrives. */
SEC("tcx/ingress")
int waggle_uplink(struct __sk_buff *skb)
{
	return look(skb, SIDE_SOURCE, 0);
}

/* On a tunnel device with a header for each packet: what was inside. */
SEC("tcx/ingress")
int waggle_tunnel(struct __sk_buff *skb)
{
	return look(skb, SIDE_SOURCE, 1);
}

char programs_license[] SEC("license") = "Dual BSD/GPL";
