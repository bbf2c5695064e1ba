// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package operator_test

import (
	"bytes"
	"testing"

	"github.com/cilium/cilium/operator/cmd"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/host/operator"
)

// TestComposes: our cells and upstream's agree about each object and each flag, in
// whichever order they come, and the program prints them.
func TestComposes(t *testing.T) {
	require.NoError(t, hive.New(operator.Cell, cmd.Operator).Populate(hivetest.Logger(t)))
	require.NoError(t, newHive().Populate(hivetest.Logger(t)))

	program := cmd.NewOperatorCmd(newHive()) // two flags of one name panic
	for _, name := range []string{"enable-clustermesh-export", "enable-incluster-cache", "clustermesh-sync-mode", "incluster-cache-resources"} {
		require.NotNil(t, program.Flags().Lookup(name), name)
	}
	var out bytes.Buffer
	newHive().PrintObjects(&out, hivetest.Logger(t))
	for _, module := range []string{"waggle", "exporter", "cache", "kubernetes", "state"} {
		require.Contains(t, out.String(), "Ⓜ️ "+module)
	}
}
