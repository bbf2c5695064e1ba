// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Generate writes docs/metrics.md, whose path is its argument.
package main

import (
	"fmt"
	"os"

	"github.com/waggle-mesh/waggle/cells/metrics/catalog"
)

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: %s FILE", os.Args[0])
	}
	text, err := catalog.Markdown()
	if err != nil {
		return err
	}
	return os.WriteFile(os.Args[1], []byte(text), 0o600)
}
