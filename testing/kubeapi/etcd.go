// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"context"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// quotaBytes is etcd's own advised maximum; its default of 2 GiB ends a test of
// half a million objects, of which it keeps every version for five minutes.
const quotaBytes = 8 << 30

// store is the etcd that the server keeps its objects in. It runs in the test's
// own process.
type store struct {
	// URL is where it listens for clients, without TLS.
	URL    string
	server *embed.Etcd
}

// startEtcd runs an etcd with its data in dir, and returns once it is ready.
func startEtcd(ctx context.Context, dir, logFile string) (*store, error) {
	// Port 0: the kernel chooses one. What is advertised with it is wrong, but
	// read only by other members and by clients that ask for them.
	loopback := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config := embed.NewConfig()
	config.Dir = dir
	config.ListenClientUrls, config.AdvertiseClientUrls = loopback, loopback
	config.ListenPeerUrls, config.AdvertisePeerUrls = loopback, loopback
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.QuotaBackendBytes = quotaBytes
	// The data end with the test, so they needn't survive a power cut.
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	// Embedded, its default is 0: a warning for each request.
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	config.LogOutputs = []string{logFile}

	server, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	s := &store{URL: "http://" + server.Clients[0].Addr().String(), server: server}
	select {
	case <-server.Server.ReadyNotify():
		return s, nil
	case err = <-server.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	return nil, fmt.Errorf("waiting until it is ready: %w", err)
}

// Close ends etcd and returns when it is gone.
func (s *store) Close() { s.server.Close() }
