// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Clustermesh-apiserver is upstream's program of that name with Waggle's cells in it:
// the same commands, flags, ports and metrics. See docs/clustermesh-apiserver.md.
package main

import (
	"fmt"
	"os"

	"github.com/waggle-mesh/waggle/cells/host/apiserver"
)

func main() {
	if err := apiserver.NewRootCmd().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
