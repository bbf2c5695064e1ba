// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLazyConn: all that is sent is read, in order, before and after it is read lazily, and
// what is more than one read takes as well.
func TestLazyConn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	var dialer lazyDialer
	conn, err := dialer.dial(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	peer, err := listener.Accept()
	require.NoError(t, err)

	sent := make([]byte, 1<<20)
	_, err = rand.NewChaCha8([32]byte{}).Read(sent)
	require.NoError(t, err)
	first, read := sent[:100], make([]byte, 100)
	_, err = peer.Write(first)
	require.NoError(t, err)
	_, err = io.ReadFull(conn, read)
	require.NoError(t, err)
	require.Equal(t, first, read)

	dialer.lazy.Store(true)
	go func() {
		for rest := sent[100:]; len(rest) > 0; {
			n, err := peer.Write(rest[:min(len(rest), 300_000)])
			if err != nil {
				break // which is then what is read
			}
			rest = rest[n:]
		}
		peer.Close()
	}()
	rest, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent[100:], rest), "%d bytes of %d, or others", len(rest), len(sent)-100)
}
