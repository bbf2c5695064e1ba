// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/k8s/client"
	"golang.org/x/sys/unix"
)

const (
	// heldBytes are received by a connection that is held before it is read nevertheless:
	// a list, which comes as fast as it is read, isn't kept waiting.
	heldBytes = 256 << 10
	// readAhead is how long before a transaction connections are read again: for what
	// some hundred events take to read that have come by then, at 50 µs each, and as much again.
	readAhead = 10 * time.Millisecond
)

// held are the clientset's connections to the API server, which can be left unread for a
// while. An event that waits for the next transaction may as well wait in the kernel: to be
// woken for each, with a goroutine for the connection, one for the stream and one for the
// kind, costs more than what it says. It is safe for concurrent use.
type held struct {
	mu    sync.Mutex
	conns []syscall.RawConn
}

var _ client.ConfigureK8sClientsetDialer = (*held)(nil)

// ConfigureK8sClientsetDialer has all connections noted that are made, and those forgotten
// that are closed by then: while the API server is away there is one attempt after the other.
func (h *held) ConfigureK8sClientsetDialer(dialer *net.Dialer) {
	dialer.Control = func(_, _ string, conn syscall.RawConn) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.conns = append(slices.DeleteFunc(h.conns, isClosed), conn)
		return nil
	}
}

func isClosed(conn syscall.RawConn) bool { return conn.Control(func(uintptr) {}) != nil }

// hold leaves what comes to the kernel, until release or until it is heldBytes.
func (h *held) hold() { h.readFrom(heldBytes) }

// release has what has come be read, and all that comes from now on.
func (h *held) release() { h.readFrom(1) }

// readFrom sets how much has to have come before the kernel tells of it (SO_RCVLOWAT; of
// TCP also to those who wait by epoll). Connections that are closed are forgotten.
func (h *held) readFrom(bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = slices.DeleteFunc(h.conns, func(conn syscall.RawConn) bool {
		var failed error
		err := conn.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
		return errors.Join(err, failed) != nil
	})
}
