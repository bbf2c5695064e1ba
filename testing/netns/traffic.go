// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Echo answers TCP connections with what they send, at all addresses of a namespace.
type Echo struct {
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// Echo begins to answer at a port.
func (n *Namespace) Echo(port uint16) (*Echo, error) {
	e := &Echo{conns: map[net.Conn]struct{}{}}
	err := n.Do(func() (err error) {
		e.listener, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		return nil, err
	}
	e.running.Go(e.accept)
	return e, nil
}

func (e *Echo) accept() {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.conns[conn] = struct{}{}
		e.mu.Unlock()
		e.running.Go(func() {
			_, _ = io.Copy(conn, conn) // it ends when either side does
			conn.Close()
			e.mu.Lock()
			delete(e.conns, conn)
			e.mu.Unlock()
		})
	}
}

// Close ends it and all connections.
func (e *Echo) Close() {
	e.listener.Close()
	e.mu.Lock()
	for conn := range e.conns {
		conn.Close()
	}
	e.mu.Unlock()
	e.running.Wait()
}

// Connect connects to a port from one of the namespace's addresses. It is one attempt,
// for which the kernel sends packets again when there is no answer, until ctx ends.
func (n *Namespace) Connect(ctx context.Context, from netip.Addr, to netip.AddrPort) (conn net.Conn, err error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), KeepAlive: -1}
	err = n.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}

// UDP opens a socket at one of the namespace's addresses.
func (n *Namespace) UDP(from netip.AddrPort) (conn *net.UDPConn, err error) {
	err = n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
		return err
	})
	return conn, err
}

// Scan sends one packet to each of many addresses, that at to and those after it, as
// fast as the namespace can.
func Scan(conn *net.UDPConn, to netip.AddrPort, count int) error {
	const atOnce = 256
	batch := ipv4.NewPacketConn(conn)
	messages := make([]ipv4.Message, atOnce)
	for sent := 0; sent < count; {
		n := min(atOnce, count-sent)
		for i := range messages[:n] {
			messages[i] = ipv4.Message{Addr: net.UDPAddrFromAddrPort(to), Buffers: [][]byte{{'?'}}}
			to = netip.AddrPortFrom(to.Addr().Next(), to.Port())
		}
		for rest := messages[:n]; len(rest) > 0; {
			done, err := batch.WriteBatch(rest, 0)
			if err != nil {
				return fmt.Errorf("sending to %s: %w", rest[0].Addr, err)
			}
			rest = rest[done:]
		}
		sent += n
	}
	return nil
}

// Ping is one program that pings: it sends an echo request now and then until one is
// answered.
type Ping struct {
	conn     *icmp.PacketConn
	to       netip.Addr
	protocol int
	request  icmp.Type
	reply    icmp.Type
	seq      int
}

// Ping opens its socket.
func (n *Namespace) Ping(from, to netip.Addr) (*Ping, error) {
	p := &Ping{to: to, protocol: 1, request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply}
	network := "ip4:icmp"
	if to.Is6() {
		network, p.protocol, p.request, p.reply = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	err := n.Do(func() (err error) {
		p.conn, err = icmp.ListenPacket(network, from.String())
		return err
	})
	return p, err
}

// Answered sends a request each interval until one is answered, or ctx ends. It gives
// how many were sent.
func (p *Ping) Answered(ctx context.Context, interval time.Duration) (sent int, err error) {
	buffer := make([]byte, 512)
	for {
		p.seq++
		echo := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: p.seq & 0xffff, Data: []byte("waggle")}
		request, err := (&icmp.Message{Type: p.request, Body: echo}).Marshal(nil) // the kernel adds IPv6's checksum
		if err != nil {
			return sent, err
		}
		if _, err := p.conn.WriteTo(request, &net.IPAddr{IP: p.to.AsSlice()}); err != nil {
			return sent, fmt.Errorf("pinging %s: %w", p.to, err)
		}
		sent++
		if err := p.conn.SetReadDeadline(time.Now().Add(interval)); err != nil {
			return sent, err
		}
		for {
			n, from, err := p.conn.ReadFrom(buffer)
			if err != nil {
				break // the interval is over
			}
			reply, err := icmp.ParseMessage(p.protocol, buffer[:n])
			if err == nil && reply.Type == p.reply && from.String() == p.to.String() {
				return sent, nil
			}
		}
		if ctx.Err() != nil {
			return sent, context.Cause(ctx)
		}
	}
}

// Close closes the socket.
func (p *Ping) Close() error { return p.conn.Close() }
