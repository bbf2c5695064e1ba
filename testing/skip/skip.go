// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package skip leaves out tests that can't run where they are.
package skip

import (
	"os"
	"testing"
)

// Lacking skips the test for want of what the error says. Where the environment has CI
// everything must be there, and the test fails.
func Lacking(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}
