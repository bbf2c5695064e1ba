// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build ignore

// The program of this package looks up all that is waited for at once. See await.go.

// What is needed of the kernel's interface, so that the object depends on the compiler
// alone.
typedef unsigned char __u8;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1024 };

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*ktime_get_ns)(void) = (void *)5;

// The sizes of Cilium's cilium_ipcache_v2; a value begins with the identity.
struct key {
	__u8 bytes[24];
};

struct value {
	__u32 identity;
	__u8 rest[20];
};

enum state { EMPTY, AWAITED, FOUND };

struct slot {
	struct key key;
	__u32 identity;
	__u32 state; // enum state
	__u64 time;  // of FOUND, CLOCK_MONOTONIC
};

// MaxAwaited in await.go.
#define MAX_SLOTS 1024

// Another process's map, put in its place before the program is loaded.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct key);
	__type(value, struct value);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} target SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct slot);
	__uint(max_entries, MAX_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
} slots SEC(".maps");

// How many slots there are at most, set before the program is loaded.
volatile const __u32 used;

// So that bpf2go knows of the type.
struct slot *unused_slot __attribute__((unused));

// Gives how many were found by this look.
SEC("tc")
int waggle_look(void *packet)
{
	__u32 i, found = 0;

	for (i = 0; i < MAX_SLOTS; i++) {
		struct slot *slot;
		struct value *value;
		__u32 at = i;

		if (i >= used)
			break;
		slot = map_lookup_elem(&slots, &at);
		if (!slot || slot->state != AWAITED)
			continue;
		value = map_lookup_elem(&target, &slot->key);
		if (!value || value->identity != slot->identity)
			continue;
		slot->time = ktime_get_ns();
		slot->state = FOUND;
		found++;
	}
	return found;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
