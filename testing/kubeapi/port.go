// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// port is a TCP port of 127.0.0.1 that no other process is given by chance,
// neither before the server listens nor while it is down for a restart.
type port struct {
	Number int
	fd     int
}

// reservePort binds a free port without listening on it. SO_REUSEPORT lets a
// server that sets it too, and runs as the same user, listen there; until it
// does, connections are refused.
func reservePort() (*port, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	p := &port{fd: fd}
	if err := p.bind(); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

func (p *port) bind() error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("setting SO_REUSEPORT: %w", err)
	}
	if err := unix.Bind(p.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("binding to 127.0.0.1: %w", err)
	}
	address, err := unix.Getsockname(p.fd)
	if err != nil {
		return fmt.Errorf("reading the socket's address: %w", err)
	}
	p.Number = address.(*unix.SockaddrInet4).Port
	return nil
}

// Address is the port at 127.0.0.1.
func (p *port) Address() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(p.Number))
}

// Release gives the port back.
func (p *port) Release() { unix.Close(p.fd) }
