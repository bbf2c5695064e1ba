// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package ondemand_test sends real packets between pods in network namespaces, where an
// agent has to find out on demand who is at the other end, and something drops whatever
// isn't known to be allowed.
//
//	rig_test.go        two clusters, two nodes, and an agent on one of them
//	policy_test.go     who is allowed, by labels
//	reach_test.go      packets get through with on-demand resolution, and don't without
//	away_test.go       the other cluster can't be asked
//	restart_test.go    the agent is restarted, and the feature turned off
//	overload_test.go   a pod scans a million addresses
package ondemand_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/testing/netns"
)

func TestMain(m *testing.M) {
	code, err := netns.Main(func() int {
		code := m.Run()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}
