// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package operator_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/cilium/cilium/operator/cmd"
	"github.com/cilium/cilium/pkg/hive"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/host/operator"
)

// asOperator has the test's binary be a cilium-operator.
const asOperator = "WAGGLE_TEST_OPERATOR"

// TestMain is the tests, or, in a process that one of them starts, the operator: it is
// a program that ends its process when it leads no longer.
func TestMain(m *testing.M) {
	if os.Getenv(asOperator) == "" {
		os.Exit(m.Run())
	}
	if err := ownRunDirectory(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd.Execute(cmd.NewOperatorCmd(newHive()))
}

// newHive is what a cilium-operator with our cells is made of.
func newHive() *hive.Hive { return hive.New(cmd.Operator, operator.Cell) }

// ownRunDirectory has upstream's fixed paths below /var/run lead elsewhere, in the mount
// namespace that the process has been given.
func ownRunDirectory() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts to the process: %w", err)
	}
	if err := unix.Mount("tmpfs", "/var/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mounting an own /var/run: %w", err)
	}
	return nil
}
