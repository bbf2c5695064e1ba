// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// relay is an address behind which servers come and go. It is how an etcd can be
// cut off at once: one that is told to stop waits for its clients' watches.
type relay struct {
	listener net.Listener
	running  sync.WaitGroup

	mu sync.Mutex
	// target is where new connections go; while it is empty they are refused.
	target string
	conns  map[net.Conn]struct{}
	closed bool
}

func newRelay(t testing.TB) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relay{listener: listener, conns: map[net.Conn]struct{}{}}
	r.running.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

// aim sends new connections to another server, or nowhere, and breaks those that
// there are.
func (r *relay) aim(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	for conn := range r.conns {
		conn.Close()
	}
}

func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.listener.Close()
	r.aim("")
	r.running.Wait()
}

func (r *relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.running.Go(func() { r.serve(client) })
	}
}

// serve carries bytes in both directions until one side ends.
func (r *relay) serve(client net.Conn) {
	defer client.Close()
	server := r.dial(client)
	if server == nil {
		return
	}
	defer r.forget(client, server)
	var answers sync.WaitGroup
	defer answers.Wait()
	answers.Go(func() {
		defer client.Close()
		_, _ = io.Copy(client, server) // however it ends, both sides see it
	})
	_, _ = io.Copy(server, client)
	server.Close()
}

// dial connects to the target, and is nil if that is nowhere or doesn't answer.
func (r *relay) dial(client net.Conn) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target == "" || r.closed {
		return nil
	}
	server, err := net.Dial("tcp", r.target)
	if err != nil {
		return nil
	}
	r.conns[client], r.conns[server] = struct{}{}, struct{}{}
	return server
}

func (r *relay) forget(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
		delete(r.conns, conn)
	}
}
