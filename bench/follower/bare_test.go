// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/waggle-mesh/waggle/testing/loopback"
)

// TestDeafConn: what is sent is read until the connection is deaf, and nothing of what
// comes then but its end.
func TestDeafConn(t *testing.T) {
	dialer := newDeafDialer()
	conn, peer, address := loopback.Dial(t, dialer.dial)

	_, err := io.WriteString(peer, "heard")
	require.NoError(t, err)
	heard := make([]byte, len("heard"))
	_, err = io.ReadFull(conn, heard)
	require.NoError(t, err)
	require.Equal(t, "heard", string(heard))

	require.NoError(t, dialer.deafen())
	read := make(chan string)
	go func() {
		rest, err := io.ReadAll(conn)
		if err != nil {
			rest = []byte(err.Error())
		}
		read <- string(rest)
	}()
	_, err = peer.Write(make([]byte, 16<<20))
	require.NoError(t, err)
	_, err = io.WriteString(conn, "written")
	require.NoError(t, err)
	written := make([]byte, len("written"))
	_, err = io.ReadFull(peer, written)
	require.NoError(t, err)
	require.Equal(t, "written", string(written))
	require.NoError(t, peer.Close())
	require.Empty(t, <-read)

	_, err = dialer.dial(t.Context(), "tcp", address)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "there are no further connections")
	require.ErrorIs(t, <-dialer.lost, io.ErrUnexpectedEOF)
	require.NoError(t, conn.Close())
	require.ErrorIs(t, conn.Close(), os.ErrClosed)
	_, err = conn.Write([]byte{1})
	require.Error(t, err)
}

// TestDeafClosed: what is closed while it is deafened stays closed.
func TestDeafClosed(t *testing.T) {
	for range 100 {
		dialer := newDeafDialer()
		conn, peer, _ := loopback.Dial(t, dialer.dial)
		var closed sync.WaitGroup
		closed.Go(func() { assert.NoError(t, conn.Close()) })
		require.NoError(t, dialer.deafen())
		closed.Wait()
		_, err := peer.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
}

// TestDeafHTTP: to a deaf client more can be sent than HTTP/2 has room for by itself.
func TestDeafHTTP(t *testing.T) {
	deaf, sent := make(chan struct{}), make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			sent <- errors.New("it isn't HTTP/2 but " + r.Proto)
			return
		}
		w.(http.Flusher).Flush()
		<-deaf
		_, err := w.Write(make([]byte, 16<<20))
		sent <- err
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	dialer := newDeafDialer()
	client, err := dialer.httpClient(&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	body, err := get(t.Context(), client, server.URL, "application/json")
	require.NoError(t, err)
	require.NoError(t, dialer.deafen())
	close(deaf)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, body)
		ended <- err
	}()
	require.NoError(t, <-sent)
	server.CloseClientConnections()
	require.Error(t, <-ended)
}
