// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package incluster tests the in-cluster cache and the agents that read it as they
// run: on a real kube-apiserver, with real etcds, in the hives of the programs.
//
//	rig_test.go       the cluster, its cache, and an agent
//	load_test.go      what changes in the cluster meanwhile
//	truth_test.go     what the agent's tables should hold
//	faults_test.go    what goes wrong
//	service_test.go   a cache that is named as a Service
//	warm_test.go      an agent that is killed, and what the next one begins with
//	process_test.go   an agent in a process of its own
package incluster

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(beAgent) != "" {
		fmt.Fprintln(os.Stderr, runAgent())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m,
		// Started by the init functions of packages that etcd and upstream import.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}
