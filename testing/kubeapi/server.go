// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package kubeapi runs the real kube-apiserver for tests: a process of its own,
// on an embedded etcd, with Cilium's and the MCS-API's CRDs installed.
//
//	server.go       Start, Stop, Kill, Restart
//	build.go        the binary: built once, shared by all test packages
//	port.go         a port that stays the server's
//	process.go      a child process that is always reaped
//	etcd.go         what it stores its objects in
//	metric.go       what the server says of itself
//
// Its flags, credentials, clients and CRDs are those of bench/apiserver.
//
// There is an API server and nothing else: no controller removes what an owner
// reference points to, completes the deletion of a namespace, or creates
// service accounts (so pods are admitted without one).
package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/bench/apiserver"
)

const (
	// startTimeout bounds one start. It takes some 4 s on two idle cores; the
	// rest is for a machine that builds and tests other packages meanwhile.
	startTimeout = 2 * time.Minute
	// readyInterval is the pause between two questions whether it is ready.
	readyInterval = 50 * time.Millisecond
	// shownLines is how much of a log's end a failed test shows.
	shownLines = 100
)

// Server is one kube-apiserver with its etcd. The clients may be used from any
// goroutine; Stop, Kill and Restart are called one at a time.
type Server struct {
	apiserver.Clients
	// Kubeconfig is the path of a kubeconfig file for the cluster's admin. It
	// stays valid over restarts.
	Kubeconfig string

	binary string
	log    *os.File
	flags  []string
	// process is the running server, or the one that ended last.
	process *process
}

// Start runs a kube-apiserver until the test ends, and returns once it is ready
// and its CRDs are established. The binary is built when it is missing, which
// takes minutes. The test is skipped where it can't be built, except in
// continuous integration (CI is set in the environment), where it fails.
func Start(t testing.TB) *Server {
	t.Helper()
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))

	binary := Require(t)

	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	s, err := launch(ctx, t, binary)
	if err != nil {
		t.Fatalf("starting kube-apiserver: %v", err)
	}
	if err := apiserver.InstallCRDs(ctx, log, s.APIExtensions); err != nil {
		t.Fatalf("installing CRDs: %v", err)
	}
	return s
}

// launch starts etcd and the API server. What it starts ends with the test,
// also when it returns an error.
func launch(ctx context.Context, t testing.TB, binary string) (*Server, error) {
	dir := t.TempDir()

	etcdLog := filepath.Join(dir, "etcd.log")
	showOnFailure(t, etcdLog)
	etcd, err := startEtcd(ctx, filepath.Join(dir, "etcd"), etcdLog)
	if err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	t.Cleanup(etcd.Close)

	port, err := reservePort()
	if err != nil {
		return nil, fmt.Errorf("reserving a port: %w", err)
	}
	t.Cleanup(port.Release)

	creds, err := apiserver.WriteCredentials(dir, port.Address())
	if err != nil {
		return nil, fmt.Errorf("writing credentials: %w", err)
	}
	clients, err := apiserver.NewClients(creds.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("creating clients: %w", err)
	}
	t.Cleanup(clients.Close)

	serverLog := filepath.Join(dir, "kube-apiserver.log")
	showOnFailure(t, serverLog)
	log, err := os.OpenFile(serverLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	t.Cleanup(func() { log.Close() })

	s := &Server{
		Clients:    clients,
		Kubeconfig: creds.Kubeconfig,
		binary:     binary,
		log:        log,
		// The port is ours already: see reservePort.
		flags: append(apiserver.Flags(creds, etcd.URL), "--permit-port-sharing=true"),
	}
	// There is nothing worth keeping when the test ends, so no time is spent on
	// a graceful end.
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("killing kube-apiserver: %v", err)
		}
	})
	return s, s.run(ctx)
}

// PID is the process ID of the server that was started last.
func (s *Server) PID() int { return s.process.pid }

// Stop ends the server gracefully (SIGTERM), and returns once it is gone. When
// ctx ends before that, the server goes on ending by itself; Kill ends it now.
func (s *Server) Stop(ctx context.Context) error { return s.process.terminate(ctx) }

// Kill ends the server at once (SIGKILL), as a crash would, and returns when it
// is gone. It does nothing if the server doesn't run.
func (s *Server) Kill() error {
	if s.process == nil {
		return nil
	}
	return s.process.kill()
}

// Restart starts the server again on the same port, etcd and credentials, after
// Stop, Kill or an end of its own, and returns once it is ready. A server that
// still runs is stopped first.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// run starts the process and waits until it is ready.
func (s *Server) run(ctx context.Context) error {
	p, err := startProcess(s.binary, s.flags, s.log)
	if err != nil {
		return err
	}
	s.process = p

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = wait.PollUntilContextCancel(ctx, readyInterval, true, func(ctx context.Context) (bool, error) {
		select {
		case <-p.exited:
			return false, fmt.Errorf("it ended by itself: %w", p.err)
		default:
		}
		return s.Ready(ctx), nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting until kube-apiserver is ready: %w", err), p.kill())
	}
	return nil
}

// showOnFailure prints the end of a log file when the test has failed.
func showOnFailure(t testing.TB, path string) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Logf("no log to show: %v", err)
			return
		}
		lines := strings.SplitAfter(string(content), "\n")
		t.Logf("end of %s:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-shownLines):], ""))
	})
}
