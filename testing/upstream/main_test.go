// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package upstream_test runs Waggle's programs together with upstream's own, as
// they meet in a mesh in which some clusters run the one and some the other, and
// with a real API server.
//
//	path_test.go         the ways from a source to a reader, and the scripts on each
//	commands_test.go     what a script can say of a reader
//	exporter_test.go     upstream's exporter
//	kvstoremesh_test.go  upstream's KVStoreMesh
//	agent_test.go        upstream's agent and operator, with what they are told recorded
//	content_test.go      what a reader has, in one form for both
//	roles_test.go        what upstream's etcd roles permit
//	kubernetes_test.go   a real API server at the one end, a BPF map at the other
package upstream_test

import (
	"testing"
	"time"

	k8stestutils "github.com/cilium/cilium/pkg/k8s/testutils"
	"github.com/cilium/cilium/pkg/k8s/version"
	"github.com/cilium/cilium/pkg/option"
	"go.uber.org/goleak"
)

// The clusters of the tests: what "north" exports, "west" reads.
const (
	north          = "north"
	northID uint32 = 1
	west           = "west"
	westID  uint32 = 2
)

func TestMain(m *testing.M) {
	// Upstream's configuration is global: whatever of it runs here and reads it,
	// belongs to the cluster that reads.
	option.Config.ClusterName = west
	option.Config.ClusterID = westID
	option.Config.IdentityAllocationMode = option.IdentityAllocationModeCRD
	option.Config.AllocatorListTimeout = time.Minute
	// What upstream's real client would have asked the API server for.
	version.Force(k8stestutils.DefaultVersion)

	goleak.VerifyTestMain(m)
}
