// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"testing"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// notPermitted is why the tests of this process aren't isolated, for their reasons to
// be skipped.
const notPermitted = "WAGGLE_NETNS_NOT_PERMITTED"

// Main runs the tests of a package by [Isolate], for its TestMain, and gives the exit
// code. Where that isn't permitted, they run as they are, and those that call [Require]
// are skipped.
func Main(run func() int) (code int, err error) {
	code, err = Isolate(run)
	if errors.Is(err, ErrNotPermitted) {
		if err := os.Setenv(notPermitted, err.Error()); err != nil {
			return 1, err
		}
		return run(), nil
	}
	return code, err
}

// Require skips a test that needs namespaces of its own where there are none; where
// nothing may be skipped, with CI set, it fails.
func Require(t testing.TB) {
	t.Helper()
	if Isolated() {
		return
	}
	skip.Lacking(t, errors.New(os.Getenv(notPermitted)))
}
