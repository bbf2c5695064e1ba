// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgramsCanBeProfiled has the flags that docs/performance.md names, in each
// program: off, and on loopback.
func TestProgramsCanBeProfiled(t *testing.T) {
	for _, p := range programs {
		flags := newProgramCmd(p).Flags()
		for name, value := range map[string]string{"pprof": "false", "pprof-address": "localhost", "pprof-port": "6060"} {
			flag := flags.Lookup(name)
			require.NotNil(t, flag, "%s --%s", p.name, name)
			require.Equal(t, value, flag.DefValue, "%s --%s", p.name, name)
		}
	}
}
