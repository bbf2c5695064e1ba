// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/hive/cell"
	"golang.org/x/sys/unix"
)

const (
	// unreadBytes are received by a connection that is left unread before it is read
	// nevertheless, so that a list comes as fast as it is read, but for what is left of it
	// in the end.
	unreadBytes = 256 << 10
	// readAhead is how long before a transaction connections are read again: as long as it
	// takes to decode unreadBytes, which are some 170 events at 50 µs each, and again as long
	// for a processor to be free. What isn't decoded by then waits for the next transaction:
	// with 10 ms, on a machine whose processors were busy for 60 %, more than one in a hundred.
	readAhead = 20 * time.Millisecond
)

// PatientCell has a hive with ClientCell leave its connections to the API server
// unread between two transactions on the tables, where reading.Options has them far enough
// apart (Spacing). It is upstream's client.ConfigureK8sClientsetDialer, of which a hive has
// one.
var PatientCell = cell.Provide(func(log *slog.Logger) (*connections, client.ConfigureK8sClientsetDialer) {
	c := &connections{log: log}
	return c, c
})

// connections are the clientset's to the API server, which can be left unread for a while.
// An event that waits for the next transaction may as well wait in the kernel: to be woken
// for each, with a goroutine for the connection, one for the stream and one for the kind,
// costs more than what it says. The methods are safe for concurrent use, and nil has no
// connections.
type connections struct {
	log *slog.Logger

	mu sync.Mutex
	// noted are all that were made. What a dialer's Control is given is of use for as long
	// as the connection is open.
	noted []syscall.RawConn
	// unread is nil unless they are, and then what ends that.
	unread *time.Timer
	failed bool
}

// ConfigureK8sClientsetDialer has all connections noted that are made, and those forgotten
// that are closed by then: while the API server is away there is one attempt after the other.
func (c *connections) ConfigureK8sClientsetDialer(dialer *net.Dialer) {
	dialer.Control = func(_, _ string, conn syscall.RawConn) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.noted = append(slices.DeleteFunc(c.noted, isClosed), conn)
		return nil
	}
}

func isClosed(conn syscall.RawConn) bool { return conn.Control(func(uintptr) {}) != nil }

// leaveUnread leaves what comes to the kernel until readAhead before the end of pause, or
// until there is much. Of a pause that is hardly longer than that nothing is gained.
func (c *connections) leaveUnread(pause time.Duration) {
	if c == nil || pause <= 2*readAhead {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unread != nil {
		c.unread.Stop()
	}
	c.unread = time.AfterFunc(pause-readAhead, c.read)
	c.tellFrom(unreadBytes)
}

// read has what has come be read, and from now on what comes when it does.
func (c *connections) read() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unread != nil {
		c.unread.Stop()
		c.unread = nil
		c.tellFrom(1)
	}
}

// tellFrom says how much has to have come before the kernel tells of it (SO_RCVLOWAT, which
// for TCP counts for epoll as well since Linux 4.18). It is called with mu held.
func (c *connections) tellFrom(bytes int) {
	for _, conn := range c.noted {
		var failed error
		if err := conn.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
		}); err == nil && failed != nil && !c.failed {
			c.failed = true
			c.log.Warn("Connections to the API server can't be left unread, which costs processor time", "error", failed)
		}
	}
}
