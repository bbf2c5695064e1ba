// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

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
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// ServerConfig configures an embedded etcd.
type ServerConfig struct {
	// Dir holds the data. Where it is empty a new, random cluster token is used,
	// so that its cluster ID differs from that of any etcd that was there before.
	Dir string
	// ListenURL is http://host:port, https://host:port or unix:///path.
	ListenURL string
	// CertFile, KeyFile and TrustedCAFile are for https; with a CA, clients need
	// a certificate of it, and with AllowedHostnames one for such a name.
	CertFile, KeyFile, TrustedCAFile string
	AllowedHostnames                 []string
	// LocalDir, if set, is a directory for two more sockets: one for clients of
	// this process, who need no certificate (see Server.LocalURL), and one for what
	// etcd serves by HTTP, its metrics and health. ListenURL is then for gRPC alone,
	// and faster under TLS: where etcd serves both at one address, gRPC goes through
	// Go's HTTP server.
	LocalDir string
	// QuotaBytes bounds the database; 0 is 4 GiB.
	QuotaBytes int64
	// Compaction is how much history is kept; 0 is ten minutes.
	Compaction time.Duration
	// Token replaces the random cluster token, for tests that need an etcd which
	// can't be told from another by its cluster ID.
	Token string
	// GRPC are further options of its gRPC server, for what looks at requests.
	GRPC []grpc.ServerOption

	maxTxnOps uint // for tests; 0 is serverMaxTxnOps
}

const (
	// defaultQuotaBytes holds 500,000 endpoints several times over.
	defaultQuotaBytes = 4 << 30
	// defaultCompaction keeps enough history for a reader to come back after a
	// short interruption without a list.
	defaultCompaction = 10 * time.Minute
	// serverMaxTxnOps is far beyond etcd's default of 128: a transaction of 5,000
	// puts takes 27 ms.
	serverMaxTxnOps = 8192
)

// Server is a real etcd in this process, of one member. It doesn't sync to disk:
// what it holds can be made again from its source.
type Server struct {
	etcd       *embed.Etcd
	url, local string
}

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
	s := &Server{etcd: server, url: address}
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
	config.GRPCAdditionalServerOptions = cfg.GRPC
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

// URL is the address for clients.
func (s *Server) URL() string { return s.url }

// LocalURL is the address for clients of this process: a Unix socket where there is
// one (ServerConfig.LocalDir), else URL.
func (s *Server) LocalURL() string { return cmp.Or(s.local, s.url) }

// Err delivers the error that ends the server, if one does.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server. Its data stay in the directory.
func (s *Server) Close() { s.etcd.Close() }
