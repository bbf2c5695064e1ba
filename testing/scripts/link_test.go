// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

func newTestLink(t *testing.T, s *server, faults float64) *link {
	t.Helper()
	l, err := newLink(hivetest.Logger(t), s, faults)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.close()) })
	return l
}

func (l *link) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.url(), "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// answers says whether an etcd speaks over the connection: it does at once, with
// the settings of HTTP/2.
func answers(conn net.Conn) bool {
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 9))
	return err == nil
}

// reaches says whether a new connection gets through to the etcd.
func (l *link) reaches() bool {
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.url(), "http://"))
	if err != nil {
		return false // reset before it was made
	}
	defer conn.Close()
	return answers(conn)
}

// ends waits for the connection to end.
func ends(t *testing.T, conn net.Conn) {
	t.Helper()
	_, _ = io.Copy(io.Discard, conn)
}

// TestLink loses connections when it is cut or led elsewhere, and when its etcd
// stops; afterwards new ones get through.
func TestLink(t *testing.T) {
	first, second := newTestServer(t, 0), newTestServer(t, 0)
	l := newTestLink(t, first, 0)
	conn := l.dial(t)
	require.True(t, answers(conn))

	l.cut()
	ends(t, conn)
	require.False(t, l.reaches())
	l.heal()
	conn = l.dial(t)
	require.True(t, answers(conn))

	l.lead(second)
	ends(t, conn)
	conn = l.dial(t)
	require.True(t, answers(conn))
	l.lose(first) // it doesn't lead there
	require.NoError(t, first.stop(func() {}))
	require.True(t, l.reaches())
	require.NoError(t, second.stop(func() { l.lose(second) }))
	ends(t, conn)
	require.False(t, l.reaches())
}

// TestLinkFaults has every message lost, with its connection.
func TestLinkFaults(t *testing.T) {
	l := newTestLink(t, newTestServer(t, 0), 1)
	require.False(t, l.reaches())
}
