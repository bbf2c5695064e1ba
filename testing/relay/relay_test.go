// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// greet serves an address that says a word to whoever connects.
func greet(t *testing.T, word string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(word))
			defer conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String()
}

// TestAim follows an address to one server and then another: the connections to
// the first one break.
func TestAim(t *testing.T) {
	r, err := Listen("127.0.0.1:0")
	require.NoError(t, err)
	defer r.Close()
	one, two := greet(t, "one"), greet(t, "two")

	hear := func() (string, net.Conn) {
		conn, err := net.Dial("tcp", r.Address())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		word := make([]byte, 3)
		n, _ := io.ReadFull(conn, word)
		return string(word[:n]), conn
	}
	word, _ := hear()
	require.Empty(t, word, "it leads nowhere yet")
	r.Aim(one)
	word, first := hear()
	require.Equal(t, "one", word)
	r.Aim(two)
	_, err = first.Read(make([]byte, 1))
	require.Error(t, err, "the connection was to break")
	word, _ = hear()
	require.Equal(t, "two", word)
}
