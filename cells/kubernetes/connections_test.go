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
	"github.com/waggle-mesh/waggle/testing/loopback"
)

// TestConnections: what comes to a connection that is left unread is there and isn't told
// of, until it is read again or until it is much; and one that is closed is forgotten.
func TestConnections(t *testing.T) {
	c := &connections{log: hivetest.Logger(t)}
	var dialer net.Dialer
	c.ConfigureK8sClientsetDialer(&dialer)
	conn, peer, address := loopback.Dial(t, dialer.DialContext)

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

	c.leaveUnread(readAhead * 5 / 2)
	send(7)
	require.Eventually(t, queue.told, time.Minute, time.Millisecond, "it ends by itself")
	receive(7)

	c.leaveUnread(time.Hour)
	require.NoError(t, peer.Close())
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a connection's end is told of")
	require.NoError(t, conn.Close())
	next, err := dialer.DialContext(t.Context(), "tcp", address)
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
		c := &connections{log: hivetest.Logger(t)}
		unread := func() bool {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.unread != nil
		}
		// readAfter is how long it takes until connections are read again.
		readAfter := func() time.Duration {
			began, looks := time.Now(), time.NewTicker(time.Millisecond)
			defer looks.Stop()
			for unread() {
				<-looks.C
			}
			return time.Since(began)
		}
		applier := newApplier(nil, nil)
		applier.spacing, applier.connections = 50*time.Millisecond, c
		collected := make(stubCollector)
		applier.add(collected)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		health, _ := cell.NewSimpleHealth()
		go func() { ended <- applier.run(ctx, health) }()

		require.False(t, unread(), "nothing has happened")
		applier.wake()
		began := time.Now()
		<-collected
		require.Zero(t, time.Since(began), "the first transaction doesn't wait")
		require.True(t, unread())
		applier.wake()
		require.Equal(t, 30*time.Millisecond, readAfter(), "20 ms before the next")
		<-collected
		require.Equal(t, 50*time.Millisecond, time.Since(began), "the next")
		require.True(t, unread())
		require.Equal(t, 30*time.Millisecond, readAfter(), "though there is none to come")

		applier.wake()
		<-collected
		require.True(t, unread())
		cancel()
		require.NoError(t, <-ended)
		require.False(t, unread(), "it has ended")

		c.leaveUnread(batchSpacing)
		require.False(t, unread(), "it isn't worth it")
		(*connections)(nil).leaveUnread(time.Hour)
		(*connections)(nil).read()
	})
}

// stubCollector says when it is asked for what is pending, and has nothing.
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
