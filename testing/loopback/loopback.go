// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package loopback has TCP connections for tests, with both ends.
package loopback

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long the other end may be waited for.
const patience = time.Minute

// Dial makes a connection by dial. What is given are its two ends, of which peer is a
// *net.TCPConn, and the address that was dialled, where somebody listens until the test
// ends. So long are the ends open, and reading from or writing to peer fails in a minute.
func Dial(t testing.TB, dial func(ctx context.Context, network, address string) (net.Conn, error)) (conn, peer net.Conn, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	address = listener.Addr().String()
	conn, err = dial(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // the test may have
	peer, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	require.NoError(t, peer.SetDeadline(time.Now().Add(patience)))
	return conn, peer, address
}
