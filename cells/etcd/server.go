// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"errors"
	"time"

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
	// this process, who need no certificate (see localURL), and one for what
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

// ErrNoServer says that the program was built without an etcd of its own, by the build tag
// waggle_no_embedded_etcd.
var ErrNoServer = errors.New("this program was built without an embedded etcd")

// Server is a real etcd in this process, of one member. It doesn't sync to disk:
// what it holds can be made again from its source.
type Server struct {
	url, local string
	ended      <-chan error
	close      func()
}

// URL is the address for clients.
func (s *Server) URL() string { return s.url }

// localURL is the address for clients of this process: a Unix socket where there is
// one (ServerConfig.LocalDir), else URL.
func (s *Server) localURL() string { return cmp.Or(s.local, s.url) }

// Err delivers the error that ends the server, if one does.
func (s *Server) Err() <-chan error { return s.ended }

// Close stops the server. Its data stay in the directory.
func (s *Server) Close() { s.close() }
