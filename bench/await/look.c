// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build ignore

// The program of this package has a timer look up all that is waited for, at once and again
// and again. See await.go.

// What is needed of the kernel's interface, so that the object depends on the compiler
// alone.
typedef unsigned char __u8;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1024 };

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*ktime_get_ns)(void) = (void *)5;
static long (*timer_init)(void *timer, void *map, __u64 flags) = (void *)169;
static long (*timer_set_callback)(void *timer, void *callback) = (void *)170;
static long (*timer_start)(void *timer, __u64 nanoseconds, __u64 flags) = (void *)171;

#define CLOCK_MONOTONIC 1

// The sizes of Cilium's cilium_ipcache_v2; a value begins with the identity.
struct key {
	__u8 bytes[24];
};

struct value {
	__u32 identity;
	__u8 rest[20];
};

// What user space writes is there when awaited is 1, and what the timer writes when time
// isn't 0: each reads and writes that alone while the other may do so.
struct slot {
	struct key key;
	__u32 identity;
	__u32 awaited;
	__u64 time; // at which it was found, CLOCK_MONOTONIC
};

// The kernel knows it by its name.
struct bpf_timer {
	__u64 opaque[2];
} __attribute__((aligned(8)));

struct clock {
	struct bpf_timer timer;
	__u64 looks, time; // and the time that they took, in ns
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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct clock);
	__uint(max_entries, 1);
} clocks SEC(".maps");

// How many slots there are at most, and the time between two looks, set before the program
// is loaded.
volatile const __u32 used;
volatile const __u64 interval;

// So that bpf2go knows of the types.
struct slot *unused_slot __attribute__((unused));
struct clock *unused_clock __attribute__((unused));

static __attribute__((noinline)) int look(void *map, __u32 *key, struct clock *clock)
{
	__u64 began = ktime_get_ns();
	__u32 i;

	for (i = 0; i < MAX_SLOTS; i++) {
		struct slot *slot;
		struct value *value;
		__u32 at = i;

		if (i >= used)
			break;
		slot = map_lookup_elem(&slots, &at);
		if (!slot || READ_ONCE(slot->awaited) != 1 || READ_ONCE(slot->time))
			continue;
		value = map_lookup_elem(&target, &slot->key);
		if (value && value->identity == slot->identity)
			WRITE_ONCE(slot->time, ktime_get_ns());
	}
	clock->looks++;
	clock->time += ktime_get_ns() - began;
	timer_start(&clock->timer, interval, 0);
	return 0;
}

// Starts the timer, which runs until user space lets go of its map. Gives 0, or the kernel's error.
SEC("tc")
int waggle_look(void *packet)
{
	__u32 zero = 0;
	struct clock *clock = map_lookup_elem(&clocks, &zero);
	long err;

	if (!clock)
		return 1;
	err = timer_init(&clock->timer, &clocks, CLOCK_MONOTONIC);
	if (!err)
		err = timer_set_callback(&clock->timer, look);
	if (!err)
		err = timer_start(&clock->timer, 0, 0);
	return -err;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
