// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/state"
)

// TestConnections: what comes to a connection that is left unread is there and isn't told
// of, until it is read again or until it is much; and one that is closed is forgotten.
func TestConnections(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	c := &connections{log: hivetest.Logger(t)}
	var dialer net.Dialer
	c.ConfigureK8sClientsetDialer(&dialer)
	conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	peer, err := listener.Accept()
	require.NoError(t, err)
	defer peer.Close()
	require.NoError(t, peer.SetDeadline(time.Now().Add(time.Minute)))

	queue := newEventQueue(t, conn)
	send := func(n int) {
		_, err := peer.Write(make([]byte, n))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return queue.received() >= n }, time.Minute, time.Millisecond)
	}
	receive := func(n int) {
		_, err := io.ReadFull(conn, make([]byte, n))
		require.NoError(t, err)
	}

	c.leaveUnread(time.Hour)
	queue.told() // that it can be written to
	send(100)
	require.False(t, queue.told(), "it is left unread")
	c.read()
	require.True(t, queue.told(), "it is read again")
	receive(100)

	c.leaveUnread(time.Hour)
	send(unreadBytes)
	require.True(t, queue.told(), "it is much")
	receive(unreadBytes)
	send(1)
	require.False(t, queue.told())
	receive(1)

	c.leaveUnread(readAhead * 5 / 2) // which ends by itself
	send(7)
	receive(7)

	c.leaveUnread(time.Hour)
	require.NoError(t, peer.Close())
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a connection's end is told of")
	require.NoError(t, conn.Close())
	next, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer next.Close()
	require.Len(t, c.noted, 1, "the one that is closed is forgotten")
	c.read()
	require.False(t, c.failed)
}

// eventQueue is told of a connection as Go's runtime is: once for each thing that happens.
type eventQueue struct {
	t    *testing.T
	conn int
	poll int
}

func newEventQueue(t *testing.T, conn net.Conn) *eventQueue {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	q := &eventQueue{t: t}
	q.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(q.poll)) })
	require.NoError(t, raw.Control(func(fd uintptr) {
		q.conn = int(fd)
		err = unix.EpollCtl(q.poll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | uint32(unix.EPOLLET&0xffffffff)})
	}))
	require.NoError(t, err)
	return q
}

// received is how much there is to read; -1 if that can't be said.
func (q *eventQueue) received() int {
	n, err := unix.IoctlGetInt(q.conn, unix.TIOCINQ)
	if err != nil {
		return -1
	}
	return n
}

// told says whether there was an event since it was asked last.
func (q *eventQueue) told() bool {
	n, err := unix.EpollWait(q.poll, make([]unix.EpollEvent, 1), 0)
	require.NoError(q.t, err)
	return n > 0
}

// TestLeftUnread: connections are left unread from the start of a transaction until
// readAhead before the next may start, and not where that is soon.
func TestLeftUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unread := func(c *connections) bool {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.unread != nil
		}
		c := &connections{log: hivetest.Logger(t)}
		applier := newApplier(nil, nil)
		applier.spacing, applier.connections = 50*time.Millisecond, c
		collected := make(stubCollector, 9)
		applier.add(collected)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		health, _ := cell.NewSimpleHealth()
		go func() { ended <- applier.run(ctx, health) }()

		require.False(t, unread(c), "nothing has happened")
		applier.wake()
		require.True(t, unread(c), "there is a transaction")
		require.Len(t, collected, 1, "which didn't wait")
		applier.wake()
		time.Sleep(29 * time.Millisecond)
		require.True(t, unread(c))
		time.Sleep(time.Millisecond)
		require.False(t, unread(c), "20 ms before the next")
		require.Len(t, collected, 1)
		time.Sleep(20 * time.Millisecond)
		require.True(t, unread(c))
		require.Len(t, collected, 2, "the next")
		time.Sleep(time.Hour)
		require.False(t, unread(c), "in quiet")

		applier.wake()
		require.True(t, unread(c))
		cancel()
		require.NoError(t, <-ended)
		require.False(t, unread(c), "it has ended")

		c.leaveUnread(batchSpacing)
		require.False(t, unread(c), "it isn't worth it")
		(*connections)(nil).leaveUnread(time.Hour)
		(*connections)(nil).read()
	})
}

// stubCollector notes when it is asked for what is pending, and has nothing.
type stubCollector chan struct{}

func (s stubCollector) name() string              { return "stub" }
func (s stubCollector) collect() func(*state.Txn) { s <- struct{}{}; return nil }
func (s stubCollector) complete() bool            { return true }
func (s stubCollector) setWake(func())            {}

// TestPatientCell: upstream's clientset has its connections noted.
func TestPatientCell(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"major":"1","minor":"35","gitVersion":"v1.35.4"}`)
	}))
	defer server.Close()
	var noted *connections
	h := hive.New(client.Cell, PatientCell, cell.Invoke(func(c *connections, _ client.Clientset) { noted = c }))
	h.Viper().Set("k8s-api-server-urls", server.URL)
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, t.Context()))
	defer func() { require.NoError(t, h.Stop(log, context.WithoutCancel(t.Context()))) }()
	noted.mu.Lock()
	defer noted.mu.Unlock()
	require.NotEmpty(t, noted.noted)
}
