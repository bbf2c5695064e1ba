// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cilium/hive/cell"
)

// Status is what a follower has seen so far.
type Status struct {
	// Entries is the number of endpoints in its table.
	Entries int
	// Seen is the number of events of the run that were states of a row.
	Seen int
	// Sum is, over all addresses, the sum of the number of the last event of the
	// run: whoever knows what was sent knows by it that the last state of all has
	// arrived.
	Sum int
	// Latencies are those of the events that were seen, in microseconds.
	Latencies *hdrhistogram.Snapshot
}

// server serves the status on a socket while the hive runs.
type server struct {
	path string
	http *http.Server
	wait sync.WaitGroup
}

func newServer(path string, status func() any) cell.HookInterface {
	return newServerOf(path, answer(status))
}

func newServerOf(path string, handler http.Handler) cell.HookInterface {
	return &server{path: path, http: &http.Server{ReadHeaderTimeout: time.Second, Handler: handler}}
}

// answer gives the status to whoever asks.
func answer(status func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(status()) // whoever asked has gone
	}
}

// Start implements cell.HookInterface.
func (s *server) Start(ctx cell.HookContext) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", s.path)
	if err != nil {
		return fmt.Errorf("listening for whom to tell what has arrived: %w", err)
	}
	s.wait.Go(func() { _ = s.http.Serve(listener) }) // it ends by Stop
	return nil
}

// Stop implements cell.HookInterface.
func (s *server) Stop(cell.HookContext) error {
	defer s.wait.Wait()
	return s.http.Close()
}

// Ask asks the follower at a socket.
func Ask(ctx context.Context, socket string) (status Status, err error) {
	err = ask(ctx, socket, &status)
	return status, err
}

// ask reads what a server serves.
func ask(ctx context.Context, socket string, status any) error {
	return request(ctx, socket, "/", func(body io.Reader) error { return json.NewDecoder(body).Decode(status) })
}

// request has a server's answer at a path read.
func request(ctx context.Context, socket, path string, read func(body io.Reader) error) (err error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://follower"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("asking the follower: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("asking the follower: %w", err)
	}
	return nil
}
