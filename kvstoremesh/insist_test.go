// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// TestInsist goes on until it has an answer, and ends with what it works for.
func TestInsist(t *testing.T) {
	away := errors.New("away")
	asked := 0
	require.NoError(t, insist(t.Context(), hivetest.Logger(t), func(context.Context) error {
		if asked++; asked < 3 {
			return away
		}
		return nil
	}))
	require.Equal(t, 3, asked)

	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, insist(ctx, hivetest.Logger(t), func(context.Context) error {
		cancel()
		return away
	}), away)

	closed := fmt.Errorf("asking: %w", etcd.ErrClosed)
	require.ErrorIs(t, insist(t.Context(), hivetest.Logger(t), func(context.Context) error { return closed }), etcd.ErrClosed)
}
