// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package await

// As with ipcache/bpf, the objects are those that clang 14 makes.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -tags linux -target bpfel,bpfeb -type slot -type clock look look.c -- -O2 -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror
