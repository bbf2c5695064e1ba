// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
)

// TestDeafConn: what is sent is read until the connection is deaf, and nothing of what
// comes then but its end, for which whoever sends needn't wait.
func TestDeafConn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	var dialer deafDialer
	conn, err := dialer.dial(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	peer, err := listener.Accept()
	require.NoError(t, err)
	defer peer.Close()

	_, err = io.WriteString(peer, "heard")
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
	require.NoError(t, peer.Close())
	require.Empty(t, <-read)
}

// TestDeafHTTP: to a deaf client more can be sent than HTTP/2 has room for by itself, per stream
// and per connection.
func TestDeafHTTP(t *testing.T) {
	deaf, sent := make(chan struct{}), make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !assertHTTP2(t, r) {
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

	var dialer deafDialer
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

func assertHTTP2(t *testing.T, r *http.Request) bool {
	if r.ProtoMajor != 2 {
		t.Errorf("%s has come, not HTTP/2", r.Proto)
	}
	return r.ProtoMajor == 2
}
