// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package relay gives an address behind which servers come and go.
package relay

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// Relay is an address behind which servers come and go, as that of a load
// balancer. It is how an etcd can be cut off at once: one that is told to stop
// waits for its clients' watches. Bytes are carried by the kernel (splice), so
// that a Relay costs its process little. Its methods are safe for concurrent
// use.
type Relay struct {
	listener net.Listener
	running  sync.WaitGroup

	mu sync.Mutex
	// target is where new connections go; while it is empty they are refused.
	target string
	conns  map[net.Conn]struct{}
	closed bool
}

// Listen opens an address, host:port, that leads nowhere yet. The port may be 0.
func Listen(address string) (*Relay, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("opening a relay: %w", err)
	}
	r := &Relay{listener: listener, conns: map[net.Conn]struct{}{}}
	r.running.Go(r.accept)
	return r, nil
}

// Address is the relay's own, as host:port.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Aim sends new connections to another server, host:port, or nowhere (empty), and
// breaks those that there are.
func (r *Relay) Aim(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	for conn := range r.conns {
		conn.Close()
	}
}

// Close ends everything and waits for it.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.listener.Close()
	r.Aim("")
	r.running.Wait()
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.running.Go(func() { r.serve(client) })
	}
}

// serve carries bytes in both directions until one side ends.
func (r *Relay) serve(client net.Conn) {
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
func (r *Relay) dial(client net.Conn) net.Conn {
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

func (r *Relay) forget(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
		delete(r.conns, conn)
	}
}
