// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// readyAgain is the time between two questions whether a subject is ready. Each
// takes it some 50 µs.
const readyAgain = 10 * time.Millisecond

// freePort is a port of this machine that nobody listens at now. Both programs'
// --health-port is at all addresses, so that it can't be one of our network.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// waitReadyz waits until a program says at its health port that it is ready.
func waitReadyz(ctx context.Context, port int) error {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", port), nil)
		if err != nil {
			return fmt.Errorf("asking whether it is ready: %w", err)
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close() // nothing is read of it
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(readyAgain):
		}
	}
}
