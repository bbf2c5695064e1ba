// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// TestMain runs the tests in namespaces of their own, since the chart's ports and paths
// are what they are. The test's binary is also what is in the image that the chart
// names: by the name that it is called by, it is this program, or a real etcd.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "clustermesh-apiserver":
		main()
		return
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case containerName:
		fmt.Fprintln(os.Stderr, enterContainer(os.Args[1]))
		os.Exit(1)
	}
	if !netns.Isolated() {
		buildForTests()
	}
	code, err := netns.Isolate(m.Run)
	switch {
	case errors.Is(err, netns.ErrNotPermitted) && os.Getenv("CI") == "":
		fmt.Println("skipped: namespaces need privileges:", err)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// chartBinary renders the chart.
const chartBinary = "../../bin/chart"

// chartErrorEnv has why that couldn't be built; one that is there is then an old one.
const chartErrorEnv = "WAGGLE_TEST_CHART_ERROR"

// buildForTests builds what the tests run while there is still a network. What is
// missing then is reported by the test that needs it.
func buildForTests() {
	// The same as "make bin/chart", and nothing to do after it.
	cmd := exec.Command("go", "build", "-C", "../../testing/chart", "-o", "../../bin/chart", ".")
	if output, err := cmd.CombinedOutput(); err != nil {
		os.Setenv(chartErrorEnv, fmt.Sprintf("%v: %v\n%s", cmd.Args, err, output))
	}
	if dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/cilium").Output(); err == nil {
		os.Setenv(upstreamEnv, string(dir[:len(dir)-1]))
	}
	if _, err := kubeapi.Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "building kube-apiserver:", err)
	}
}

// upstreamEnv names the directory of upstream's module.
const upstreamEnv = "WAGGLE_TEST_UPSTREAM"
