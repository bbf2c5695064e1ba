// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens the address. What isn't for this machine alone needs certificates: who
// may ask may learn of every pod of the mesh.
func (def Config) listen(ctx context.Context) (net.Listener, error) {
	var listener net.Listener
	var err error
	if path, ok := def.socket(); ok {
		listener, err = listenUnix(ctx, path)
	} else {
		listener, err = def.listenTCP(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s=%q: %w", FlagListenAddress, def.ListenAddress, err)
	}
	return listener, nil
}

func (def Config) listenTCP(ctx context.Context) (net.Listener, error) {
	addr, err := net.ResolveTCPAddr("tcp", def.ListenAddress)
	if err != nil {
		return nil, err
	}
	if !def.secure() && !addr.IP.IsLoopback() {
		return nil, errors.New("it isn't of this machine alone, and can't be served without --ondemand-cert-file, --ondemand-key-file and --ondemand-trusted-ca-file")
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", addr.String())
}

// listenUnix makes a socket for this user alone, in place of one that a process which
// was killed has left.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeDead(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		// Before the file is there: Linux makes it with the mode of the socket.
		var failed error
		err := conn.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	return config.Listen(ctx, "unix", path)
}

// removeDead removes a socket on which nobody listens, and nothing else.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that isn't a socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(errors.New("another process serves there"), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
