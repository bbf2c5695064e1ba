// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
)

// ServerFlags are the flags of an embedded server, by etcd's own names.
type ServerFlags struct {
	DataDir          string        `mapstructure:"data-dir"`
	ListenClientURLs string        `mapstructure:"listen-client-urls"`
	CertFile         string        `mapstructure:"cert-file"`
	KeyFile          string        `mapstructure:"key-file"`
	TrustedCAFile    string        `mapstructure:"trusted-ca-file"`
	AllowedHostnames string        `mapstructure:"client-cert-allowed-hostname"`
	QuotaBytes       int64         `mapstructure:"quota-backend-bytes"`
	Compaction       time.Duration `mapstructure:"auto-compaction-retention"`
}

// DefaultServerFlags serve on etcd's usual port, on loopback, in plain text.
var DefaultServerFlags = ServerFlags{
	ListenClientURLs: "http://127.0.0.1:2379",
	QuotaBytes:       defaultQuotaBytes,
	Compaction:       defaultCompaction,
}

// Flags registers the flags.
func (def ServerFlags) Flags(flags *pflag.FlagSet) {
	flags.String("data-dir", def.DataDir, "Directory of the etcd's data (a temporary one, removed at the end, if empty)")
	flags.String("listen-client-urls", def.ListenClientURLs, "URL to serve clients at: http://, https:// or unix://")
	flags.String("cert-file", def.CertFile, "Certificate of the server, for https")
	flags.String("key-file", def.KeyFile, "Key of the server's certificate")
	flags.String("trusted-ca-file", def.TrustedCAFile, "CA whose certificates clients must have")
	flags.String("client-cert-allowed-hostname", def.AllowedHostnames,
		"Names (subject alternative names, divided by commas) of which the certificates of clients must have one; any that the CA has signed if empty")
	flags.Int64("quota-backend-bytes", def.QuotaBytes, "Size that the database may grow to")
	flags.Duration("auto-compaction-retention", def.Compaction, "How much history is kept")
}

// validate refuses what etcd itself would take, and then fail by at the first
// client, or ignore.
func (def ServerFlags) validate() error {
	listen, err := url.Parse(def.ListenClientURLs)
	if err != nil {
		return fmt.Errorf("--listen-client-urls=%q: %w", def.ListenClientURLs, err)
	}
	if err := checkEndpoint(def.ListenClientURLs); err != nil || listen.Scheme == "" {
		return fmt.Errorf("--listen-client-urls=%q: not http://host:port, https://host:port or unix:///path", def.ListenClientURLs)
	}
	files := []struct{ flag, path string }{
		{"cert-file", def.CertFile}, {"key-file", def.KeyFile}, {"trusted-ca-file", def.TrustedCAFile},
	}
	for _, file := range files {
		switch {
		case file.path == "":
			if listen.Scheme == "https" && file.flag != "trusted-ca-file" {
				return fmt.Errorf("--%s is missing: --listen-client-urls=%q needs it", file.flag, def.ListenClientURLs)
			}
		case listen.Scheme != "https":
			// Whoever gives a certificate believes that the connection is safe.
			return fmt.Errorf("--%s has no effect: --listen-client-urls=%q is not https", file.flag, def.ListenClientURLs)
		default:
			if _, err := os.ReadFile(file.path); err != nil {
				return fmt.Errorf("--%s: %w", file.flag, err)
			}
		}
	}
	if def.AllowedHostnames != "" && def.TrustedCAFile == "" {
		return errors.New("--client-cert-allowed-hostname has no effect without --trusted-ca-file")
	}
	if def.QuotaBytes <= 0 {
		return fmt.Errorf("--quota-backend-bytes=%d: must be positive", def.QuotaBytes)
	}
	if def.Compaction <= 0 {
		return fmt.Errorf("--auto-compaction-retention=%v: must be positive", def.Compaction)
	}
	return nil
}

// missing is the flag without which clients that aren't on this machine need no
// certificate; empty if there are none.
func (def ServerFlags) missing() string {
	listen, err := url.Parse(def.ListenClientURLs)
	if err != nil || listen.Scheme == "unix" || def.TrustedCAFile != "" {
		return ""
	}
	host := listen.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return ""
	}
	return "--trusted-ca-file"
}

// ServerCell runs an embedded etcd, ready when the hive has started.
var ServerCell = cell.Module(
	"etcd-server",
	"Embedded etcd of one member for data that can be made again",

	cell.Config(DefaultServerFlags),
	cell.Invoke(func(p serverParams) error { _, err := newServer(p, ""); return err }),
)

// FlagPrefix is what a hive that has other names for the flags of an embedded server, and
// for --kvstore-opt, puts before them; it is for errors.
type FlagPrefix string

// ServerOptions is what a hive may add to an embedded server.
type ServerOptions struct {
	// GRPC are options of its gRPC server.
	GRPC []grpc.ServerOption
}

type serverParams struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Stopper   hive.Shutdowner
	Flags     ServerFlags
	Options   ServerOptions `optional:"true"`
	Prefix    FlagPrefix    `optional:"true"`
}

// named says what the flags in an error are called in this hive.
func (p *serverParams) named(err error) error {
	if p.Prefix == "" {
		return err
	}
	return fmt.Errorf("with flags that begin with --%s here: %w", p.Prefix, err)
}

// OwnServer is the embedded server of OwnServerCell. Its methods are for after the
// hive's start.
type OwnServer struct{ *runningServer }

// runs says whether there is an embedded server; there is none for an external etcd.
func (o *OwnServer) runs() bool { return o.runningServer != nil }

func newOwnServer(p serverParams, cfg Config) (*OwnServer, error) {
	if !cfg.external() {
		running, err := newServer(p, "local")
		return &OwnServer{running}, err
	}
	if p.Flags != DefaultServerFlags {
		return nil, p.named(errors.New("--kvstore-opt names an etcd, so that no embedded one runs: --data-dir, --listen-client-urls and the other flags of its server have no effect"))
	}
	return &OwnServer{}, nil
}

// runningServer is an embedded server through a hive's life.
type runningServer struct {
	serverParams
	local     string // name of the directory of local sockets; empty is none
	server    *Server
	temporary string
}

// URL is the server's address for others.
func (r *runningServer) URL() string { return r.server.URL() }

// localURL is its address for this process.
func (r *runningServer) localURL() string { return r.server.localURL() }

func newServer(p serverParams, local string) (*runningServer, error) {
	if err := p.Flags.validate(); err != nil {
		return nil, p.named(err)
	}
	r := &runningServer{serverParams: p, local: local}
	p.Lifecycle.Append(cell.Hook{OnStart: r.start, OnStop: r.stop})
	return r, nil
}

func (r *runningServer) start(ctx cell.HookContext) (err error) {
	cfg := ServerConfig{
		Dir: r.Flags.DataDir, ListenURL: r.Flags.ListenClientURLs,
		CertFile: r.Flags.CertFile, KeyFile: r.Flags.KeyFile, TrustedCAFile: r.Flags.TrustedCAFile,
		QuotaBytes: r.Flags.QuotaBytes, Compaction: r.Flags.Compaction, GRPC: r.Options.GRPC,
	}
	if r.Flags.AllowedHostnames != "" {
		cfg.AllowedHostnames = strings.Split(r.Flags.AllowedHostnames, ",")
	}
	if cfg.Dir == "" || r.local != "" {
		if r.temporary, err = os.MkdirTemp("", "waggle-etcd-"); err != nil {
			return fmt.Errorf("making the etcd's directory: %w", err)
		}
		if cfg.Dir == "" {
			cfg.Dir = filepath.Join(r.temporary, "data")
		}
		if r.local != "" {
			cfg.LocalDir = r.temporary
		}
	}
	if r.server, err = StartServer(ctx, cfg); err != nil {
		if errors.Is(err, ErrNoServer) {
			err = r.named(fmt.Errorf("%w: --kvstore-opt has to name another, by %s or %s", err, OptAddress, OptConfig))
		}
		return errors.Join(err, r.remove()) // a hook that failed isn't stopped
	}
	r.Log.Info("Embedded etcd serves", "url", r.server.URL(), "directory", cfg.Dir)
	if missing := r.Flags.missing(); missing != "" {
		r.Log.Warn("Embedded etcd can be read, and written to, by everyone who reaches its address",
			"url", r.server.URL(), "missing", missing)
	}
	r.Jobs.Add(job.OneShot("etcd-server", func(ctx context.Context, health cell.Health) error {
		health.OK("Serves at " + r.server.URL())
		select {
		case <-ctx.Done():
		case err, failed := <-r.server.Err():
			if !failed {
				return nil // it was closed by us
			}
			health.Degraded("The embedded etcd has ended", err)
			// Without it there is nothing that this process is for.
			r.Stopper.Shutdown(hive.ShutdownWithError(fmt.Errorf("embedded etcd: %w", err)))
		}
		return nil
	}))
	return nil
}

func (r *runningServer) stop(cell.HookContext) error {
	if r.server != nil {
		r.server.Close()
	}
	return r.remove()
}

// remove removes the temporary directory.
func (r *runningServer) remove() error {
	if r.temporary == "" {
		return nil
	}
	return os.RemoveAll(r.temporary)
}
