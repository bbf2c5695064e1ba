// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHeld: what comes to a connection that is held is there and isn't told of, until it is
// released or until it is much; and one that is closed is forgotten.
func TestHeld(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	var (
		h      held
		dialer net.Dialer
	)
	h.ConfigureK8sClientsetDialer(&dialer)
	conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	peer, err := listener.Accept()
	require.NoError(t, err)
	defer peer.Close()

	send := func(n int) {
		sent := make(chan error, 1)
		go func() { _, err := peer.Write(make([]byte, n)); sent <- err }()
		require.NoError(t, <-sent)
		require.Eventually(t, func() bool { there, _ := received(t, conn); return there >= n }, time.Minute, time.Millisecond)
	}
	read := func(n int) {
		_, err := io.ReadFull(conn, make([]byte, n))
		require.NoError(t, err)
	}
	readable := func() bool { _, told := received(t, conn); return told }

	h.hold()
	send(100)
	require.False(t, readable(), "it is held")
	h.release()
	require.True(t, readable(), "it is released")
	read(100)

	h.hold()
	send(heldBytes)
	require.True(t, readable(), "it is much")
	read(heldBytes)
	require.False(t, readable())

	// Who waits already is told when it is released.
	waiting := make(chan error, 1)
	go func() { _, err := io.ReadFull(conn, make([]byte, 7)); waiting <- err }()
	_, err = peer.Write(make([]byte, 7))
	require.NoError(t, err)
	h.release()
	require.NoError(t, <-waiting)

	h.hold()
	require.NoError(t, peer.Close())
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a connection's end is told of")
	require.NoError(t, conn.Close())
	next, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	require.Len(t, h.conns, 1, "the one that is closed is forgotten")
	require.NoError(t, next.Close())
	h.release()
	require.Empty(t, h.conns)
}

// received is how much there is to read of a connection, and whether the kernel tells so.
func received(t *testing.T, conn net.Conn) (bytes int, told bool) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		bytes, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		require.NoError(t, err)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		require.NoError(t, err)
		told = n > 0
	}))
	return bytes, told
}
