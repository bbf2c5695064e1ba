// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_embedded_etcd

package etcd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/cilium/hive/cell"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// OwnServerCell runs an embedded etcd for the client of Cell in the same hive, and
// for others, unless --kvstore-opt names an etcd: then it runs none.
var OwnServerCell = cell.Module(
	"etcd-server",
	"Embedded etcd that this process writes to",

	cell.Config(DefaultServerFlags),
	cell.Provide(newOwnServer),
)

// PrivateOwnServerCell is OwnServerCell for the module around it alone, which also brings
// the ServerFlags: see PrivateCell.
var PrivateOwnServerCell = cell.ProvidePrivate(newOwnServer)

// StartServer starts an etcd and waits until it serves.
func StartServer(ctx context.Context, cfg ServerConfig) (*Server, error) {
	config, err := serverConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuring embedded etcd: %w", err)
	}
	server, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("starting embedded etcd at %s: %w", cfg.ListenURL, err)
	}
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		server.Close()
		return nil, fmt.Errorf("starting embedded etcd at %s: %w", cfg.ListenURL, err)
	case <-ctx.Done():
		server.Close()
		return nil, fmt.Errorf("starting embedded etcd at %s: %w", cfg.ListenURL, context.Cause(ctx))
	}
	address := cfg.ListenURL
	for _, listener := range server.Clients {
		if addr := listener.Addr(); addr.Network() == "tcp" {
			// The port may have been chosen by the kernel.
			address = config.ListenClientUrls[0].Scheme + "://" + addr.String()
		}
	}
	s := &Server{url: address, ended: server.Err(), close: server.Close}
	if cfg.LocalDir != "" {
		s.local = localURL(cfg.LocalDir)
	}
	return s, nil
}

// localURL is the address of the socket for this process.
func localURL(dir string) string { return "unix://" + filepath.Join(dir, "etcd.sock") }

func serverConfig(cfg ServerConfig) (*embed.Config, error) {
	listen, err := url.Parse(cfg.ListenURL)
	if err != nil {
		return nil, err
	}
	config := embed.NewConfig()
	config.Dir = cfg.Dir
	config.ListenClientUrls = []url.URL{*listen}
	config.AdvertiseClientUrls = []url.URL{*listen}
	if listen.Scheme == "unix" {
		// etcd wants a host and a port here. Only a client that syncs its endpoints
		// would ask for it; ours doesn't.
		config.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "localhost:2379"}}
	}
	if cfg.LocalDir != "" {
		local, err := url.Parse(localURL(cfg.LocalDir))
		if err != nil {
			return nil, err
		}
		config.ListenClientUrls = append(config.ListenClientUrls, *local)
		config.ListenClientHttpUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(cfg.LocalDir, "http.sock")}}
		config.EnableGRPCGateway = false
	}
	// A single member has no peers, but etcd wants a listener for them: any port
	// will do, and nobody is told which.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config.ListenPeerUrls = []url.URL{peer}
	config.AdvertisePeerUrls = []url.URL{peer}
	config.InitialCluster = config.Name + "=" + peer.String()
	config.InitialClusterToken = cfg.Token
	if cfg.Token == "" {
		if config.InitialClusterToken, err = clusterToken(cfg.Dir); err != nil {
			return nil, err
		}
	}
	config.UnsafeNoFsync = true
	config.GRPCAdditionalServerOptions = append([]grpc.ServerOption{grpc.ForceServerCodecV2(newServerCodec())}, cfg.GRPC...)
	// There is no slow follower to keep raft's log for. By default it keeps the last
	// 5,000 transactions in memory, all of them where a cache is filled by large
	// ones: 188 MiB after 600,000 keys.
	config.SnapshotCatchUpEntries = 1
	config.MaxTxnOps = cmp.Or(cfg.maxTxnOps, serverMaxTxnOps)
	config.QuotaBackendBytes = cmp.Or(cfg.QuotaBytes, defaultQuotaBytes)
	// The default is in etcd's main program only. With 0, which embed has, every
	// request counts as slow, and is turned into text for a warning.
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	config.AutoCompactionMode = embed.CompactorModePeriodic
	config.AutoCompactionRetention = cmp.Or(cfg.Compaction, defaultCompaction).String()
	config.ClientTLSInfo.CertFile = cfg.CertFile
	config.ClientTLSInfo.KeyFile = cfg.KeyFile
	config.ClientTLSInfo.TrustedCAFile = cfg.TrustedCAFile
	config.ClientTLSInfo.ClientCertAuth = cfg.TrustedCAFile != ""
	config.ClientTLSInfo.AllowedHostnames = cfg.AllowedHostnames
	// What ends the server comes by Err; the rest, a stop's farewell from every
	// listener included, would only drown the program's own log.
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	return config, nil
}

// clusterToken gives the random token of the data directory, making one for a
// directory that is new. It is a file beside etcd's own, so that a restart on
// the same data stays the same cluster.
func clusterToken(dir string) (string, error) {
	path := filepath.Join(dir, "cluster-token")
	token, err := os.ReadFile(path)
	if err == nil {
		return string(token), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	random := make([]byte, 16)
	rand.Read(random) // never fails: it aborts the program instead
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	encoded := hex.EncodeToString(random)
	return encoded, os.WriteFile(path, []byte(encoded), 0o600)
}
