// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExisting(t *testing.T) {
	s := startServer(t, ServerConfig{})
	c := newTestClient(t, ClientConfig{Endpoints: []string{s.URL()}})
	put(t, c, "p/a", "1")
	has, err := c.Existing(t.Context(), []string{"p/a", "p/", "p/ab", "p/a"})
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"p/a": true, "p/": false, "p/ab": false}, has)
	has, err = c.Existing(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, has)

	ended, end := context.WithCancel(t.Context())
	end()
	_, err = c.Existing(ended, []string{"p/a"})
	require.ErrorIs(t, err, context.Canceled)

	_, err = new(Client).Existing(t.Context(), []string{"p/a"})
	require.ErrorContains(t, err, "isn't open yet")
}
