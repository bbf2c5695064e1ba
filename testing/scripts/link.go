// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
)

// link is the way of one client to one etcd: an address on loopback that passes
// connections on. The address stays while the etcd behind it is stopped, comes
// back empty, or is exchanged for another, as that of a load balancer does.
// Its methods are safe for concurrent use.
type link struct {
	log      *slog.Logger
	listener net.Listener
	// faults is the probability that a connection is cut instead of passing on
	// what arrived. It is by message, not by time, so that what a fault hits is
	// always under way, and a slow machine has no more faults than a fast one.
	faults float64

	mu     sync.Mutex
	server *server // where it leads
	broken bool
	closed bool
	conns  map[net.Conn]struct{}
	serves sync.WaitGroup
}

// newLink opens an address that leads to server.
func newLink(log *slog.Logger, server *server, faults float64) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("opening a link: %w", err)
	}
	l := &link{log: log, listener: listener, faults: faults, server: server, conns: map[net.Conn]struct{}{}}
	l.serves.Go(l.serve)
	return l, nil
}

// url is the address, as an etcd's client wants it.
func (l *link) url() string { return "http://" + l.listener.Addr().String() }

func (l *link) serve() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return // closed
		}
		l.serves.Go(func() { l.pass(conn) })
	}
}

// pass carries one connection until either side, a fault or a cut ends it.
func (l *link) pass(client net.Conn) {
	defer client.Close()
	if !l.hold(client) {
		return
	}
	defer l.drop(client)
	l.mu.Lock()
	target := l.server
	l.mu.Unlock()
	server, err := net.Dial("tcp", target.address())
	if err != nil {
		return
	}
	defer server.Close()
	if !l.hold(server) {
		return
	}
	defer l.drop(server)
	var ways sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		ways.Go(func() {
			// Whatever ends one way ends the other.
			if l.carry(way[0], way[1]) {
				l.log.Debug("Cutting a connection at random")
				abort(client)
			}
			client.Close()
			server.Close()
		})
	}
	ways.Wait()
}

// carry passes on what arrives until either side ends. It is true if it was to be
// a fault that ends it.
func (l *link) carry(to, from net.Conn) (fault bool) {
	message := make([]byte, 256<<10)
	for {
		n, err := from.Read(message)
		if n > 0 && rand.Float64() < l.faults {
			return true
		}
		if n > 0 {
			if _, err := to.Write(message[:n]); err != nil {
				return false
			}
		}
		if err != nil {
			return false
		}
	}
}

// hold notes a connection down, to be cut; false where there is to be none.
func (l *link) hold(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken || l.closed {
		abort(conn)
		return false
	}
	l.conns[conn] = struct{}{}
	return true
}

func (l *link) drop(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

// cut ends all connections and refuses new ones until heal.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
	l.abortAll()
}

// heal undoes cut.
func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = false
}

// lead has the address lead to another etcd, from the next connection on, and
// ends those that there are.
func (l *link) lead(server *server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server
	l.abortAll()
}

// lose ends the connections to a server.
func (l *link) lose(server *server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.server == server {
		l.abortAll()
	}
}

// close ends everything and waits for it.
func (l *link) close() error {
	l.mu.Lock()
	l.closed = true
	l.abortAll()
	l.mu.Unlock()
	err := l.listener.Close()
	l.serves.Wait()
	return err
}

func (l *link) abortAll() {
	for conn := range l.conns {
		abort(conn)
	}
}

// abort resets a connection, as one that a network lost: no farewell is sent.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails where it is closed already
	}
	_ = conn.Close()
}
