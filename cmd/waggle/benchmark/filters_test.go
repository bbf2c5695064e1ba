// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestShare reads shares as people write them.
func TestShare(t *testing.T) {
	for text, want := range map[string]share{"5%": 0.05, "0.05": 0.05, " 80 %": 0.8, "0": 0, "100%": 1} {
		var got share
		require.NoError(t, got.Set(text), text)
		require.InDelta(t, float64(want), float64(got), 1e-12, text)
	}
	for _, text := range []string{"", "%", "five", "5", "101%", "-1%", "NaN", "NaN%"} {
		var got share
		require.ErrorContains(t, got.Set(text), "is no share", text)
	}
	s := share(0.05)
	require.Equal(t, "5%", s.String())
}
