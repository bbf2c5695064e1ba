// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/spf13/pflag"
)

// Cell provides the client of the local cluster's etcd and the one Writer on it.
var Cell = cell.Module(
	"etcd",
	"Client of the local etcd and the group-commit writer",

	cell.Config(DefaultConfig),
	cell.Provide(
		newLocalClient, // opened when the hive starts
		newLocalWriter,
	),
)

// configPatience is the pause between looks for a configuration file that isn't
// there yet: a Secret may be mounted after the pod starts.
const configPatience = time.Second

func newLocalClient(lc cell.Lifecycle, log *slog.Logger, cfg Config) *Client {
	c := prepareClient(log, ClientConfig{})
	lc.Append(cell.Hook{
		OnStart: func(ctx cell.HookContext) error {
			var err error
			if c.cfg, err = cfg.Client(); err != nil {
				return err
			}
			for {
				err := c.open()
				if err == nil || c.cfg.ConfigPath == "" {
					return err
				}
				// It may be mounted later, or be half-written now.
				log.Warn("Waiting for a good etcd configuration", "error", err)
				if sleep(ctx, configPatience) != nil {
					return err
				}
			}
		},
		OnStop: func(cell.HookContext) error { return c.Close() },
	})
	return c
}

func newLocalWriter(jobs job.Group, lc cell.Lifecycle, log *slog.Logger, client *Client) *Writer {
	w := NewWriter(log, client)
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		w.configure(client.cfg) // known since the client's own start
		return nil
	}})
	jobs.Add(
		job.OneShot("etcd-writer", func(ctx context.Context, _ cell.Health) error { return w.Run(ctx) }),
		job.Timer("etcd-writer-health", w.reportHealth(), time.Second),
	)
	return w
}

// reportHealth makes the Writer's failures visible as degraded health.
func (w *Writer) reportHealth() job.TimerFunc {
	return func(context.Context) error {
		stats := w.Stats()
		if stats.LastError != "" {
			return fmt.Errorf("%d operations wait, %d of them refused by etcd: %s", stats.Pending, stats.Refused, stats.LastError)
		}
		return nil
	}
}

// ServerFlags are the flags of an embedded server, by etcd's own names.
type ServerFlags struct {
	DataDir          string        `mapstructure:"data-dir"`
	ListenClientURLs string        `mapstructure:"listen-client-urls"`
	CertFile         string        `mapstructure:"cert-file"`
	KeyFile          string        `mapstructure:"key-file"`
	TrustedCAFile    string        `mapstructure:"trusted-ca-file"`
	QuotaBytes       int64         `mapstructure:"quota-backend-bytes"`
	Compaction       time.Duration `mapstructure:"auto-compaction-retention"`
}

// DefaultServerFlags serve on etcd's usual port, on loopback, in plain text.
var DefaultServerFlags = ServerFlags{
	ListenClientURLs: "http://127.0.0.1:2379",
	QuotaBytes:       DefaultQuotaBytes,
	Compaction:       DefaultCompaction,
}

// Flags registers the flags.
func (def ServerFlags) Flags(flags *pflag.FlagSet) {
	flags.String("data-dir", def.DataDir, "Directory of the etcd's data (a temporary one, removed at the end, if empty)")
	flags.String("listen-client-urls", def.ListenClientURLs, "URL to serve clients at: http://, https:// or unix://")
	flags.String("cert-file", def.CertFile, "Certificate of the server, for https")
	flags.String("key-file", def.KeyFile, "Key of the server's certificate")
	flags.String("trusted-ca-file", def.TrustedCAFile, "CA whose certificates clients must have")
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
	if def.QuotaBytes <= 0 {
		return fmt.Errorf("--quota-backend-bytes=%d: must be positive", def.QuotaBytes)
	}
	if def.Compaction <= 0 {
		return fmt.Errorf("--auto-compaction-retention=%v: must be positive", def.Compaction)
	}
	return nil
}

// ServerCell runs an embedded etcd, ready when the hive has started.
var ServerCell = cell.Module(
	"etcd-server",
	"Embedded etcd of one member for data that can be made again",

	cell.Config(DefaultServerFlags),
	cell.Invoke(registerServer),
)

func registerServer(lc cell.Lifecycle, jobs job.Group, stopper hive.Shutdowner, log *slog.Logger, flags ServerFlags) error {
	if err := flags.validate(); err != nil {
		return err
	}
	var (
		server    *Server
		temporary string
	)
	lc.Append(cell.Hook{
		OnStart: func(ctx cell.HookContext) (err error) {
			dir := flags.DataDir
			if dir == "" {
				if dir, err = os.MkdirTemp("", "waggle-etcd-"); err != nil {
					return fmt.Errorf("making the etcd's directory: %w", err)
				}
				temporary = dir
			}
			server, err = StartServer(ctx, ServerConfig{
				Dir: dir, ListenURL: flags.ListenClientURLs,
				CertFile: flags.CertFile, KeyFile: flags.KeyFile, TrustedCAFile: flags.TrustedCAFile,
				QuotaBytes: flags.QuotaBytes, Compaction: flags.Compaction,
			})
			if err != nil {
				if temporary != "" {
					err = errors.Join(err, os.RemoveAll(temporary)) // a hook that failed isn't stopped
				}
				return err
			}
			log.Info("Embedded etcd serves", "url", server.URL(), "directory", dir)
			jobs.Add(job.OneShot("etcd-server", func(ctx context.Context, _ cell.Health) error {
				select {
				case <-ctx.Done():
				case err := <-server.Err():
					// Without it there is nothing that this process is for.
					stopper.Shutdown(hive.ShutdownWithError(fmt.Errorf("embedded etcd: %w", err)))
				}
				return nil
			}))
			return nil
		},
		OnStop: func(cell.HookContext) error {
			if server != nil {
				server.Close()
			}
			if temporary != "" {
				return os.RemoveAll(temporary)
			}
			return nil
		},
	})
	return nil
}
