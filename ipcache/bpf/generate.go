// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

// The objects depend on the compiler and on nothing else: that of Debian 12, clang 14,
// gives these bytes (apt-get install clang-14 llvm-14). Another one gives others.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -tags linux -target bpfel,bpfeb -type ipcache_miss -type counters -type bucket_key miss c/miss.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
