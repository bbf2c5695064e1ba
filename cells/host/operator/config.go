// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

const (
	flagExport      = "enable-clustermesh-export"
	flagExportStore = "clustermesh-export-kvstore-opt"
	flagExportLease = "clustermesh-export-kvstore-lease-ttl"

	flagCache      = "enable-incluster-cache"
	cachePrefix    = "incluster-cache-"
	flagCacheStore = cachePrefix + "kvstore-opt"
)

// ErrTwoWriters says that the agents and the exporter would write the same state.
var ErrTwoWriters = errors.New("--" + flagExport + ": with --kvstore the agents write their state to etcd themselves")

// Config says which of the two run, and which etcds they write to. The operator's own
// --kvstore and --kvstore-opt are for another purpose: they have Cilium itself keep its
// state in an etcd.
type Config struct {
	// Export runs the exporter, on the replica that leads.
	Export bool `mapstructure:"enable-clustermesh-export"`
	// ExportKVStoreOpt is the etcd that other clusters read: see etcd.Config.
	ExportKVStoreOpt map[string]string `mapstructure:"clustermesh-export-kvstore-opt"`
	// ExportLeaseTTL is the time to live of its keys without their writer.
	ExportLeaseTTL time.Duration `mapstructure:"clustermesh-export-kvstore-lease-ttl"`

	// Cache runs the in-cluster cache: with its embedded etcd on each replica, with an
	// external one on the replica that leads.
	Cache bool `mapstructure:"enable-incluster-cache"`
	// CacheKVStoreOpt names an external etcd, or tunes the client of the embedded one.
	CacheKVStoreOpt map[string]string `mapstructure:"incluster-cache-kvstore-opt"`

	// The embedded etcd: see etcd.ServerFlags.
	CacheDataDir          string        `mapstructure:"incluster-cache-data-dir"`
	CacheListenClientURLs string        `mapstructure:"incluster-cache-listen-client-urls"`
	CacheCertFile         string        `mapstructure:"incluster-cache-cert-file"`
	CacheKeyFile          string        `mapstructure:"incluster-cache-key-file"`
	CacheTrustedCAFile    string        `mapstructure:"incluster-cache-trusted-ca-file"`
	CacheAllowedHostnames string        `mapstructure:"incluster-cache-client-cert-allowed-hostname"`
	CacheQuotaBytes       int64         `mapstructure:"incluster-cache-quota-backend-bytes"`
	CacheCompaction       time.Duration `mapstructure:"incluster-cache-auto-compaction-retention"`
}

// DefaultConfig runs neither: the operator is then what it is without them.
var DefaultConfig = Config{
	ExportLeaseTTL:        etcd.DefaultConfig.KVStoreLeaseTTL,
	CacheListenClientURLs: etcd.DefaultServerFlags.ListenClientURLs,
	CacheQuotaBytes:       etcd.DefaultServerFlags.QuotaBytes,
	CacheCompaction:       etcd.DefaultServerFlags.Compaction,
}

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.Bool(flagExport, def.Export, "Export this cluster's state from Kubernetes to the etcd that other clusters read")
	flags.StringToString(flagExportStore, def.ExportKVStoreOpt,
		"That etcd, e.g. etcd.config=/var/lib/etcd-config/etcd.config or etcd.address=http://127.0.0.1:2379")
	flags.Duration(flagExportLease, def.ExportLeaseTTL, "How long its keys stay without the operator")
	flags.Bool(flagCache, def.Cache, "Serve this cluster's state to its own agents from an etcd in this process")
	flags.StringToString(flagCacheStore, def.CacheKVStoreOpt,
		"External etcd for that instead, written by the replica that leads; or options of the client of the embedded one")
	server := pflag.NewFlagSet("", pflag.ContinueOnError)
	def.server().Flags(server)
	server.VisitAll(func(flag *pflag.Flag) {
		flag.Name = cachePrefix + flag.Name
		flags.AddFlag(flag)
	})
}

// server is the embedded etcd of the cache.
func (def Config) server() etcd.ServerFlags {
	return etcd.ServerFlags{
		DataDir: def.CacheDataDir, ListenClientURLs: def.CacheListenClientURLs,
		CertFile: def.CacheCertFile, KeyFile: def.CacheKeyFile, TrustedCAFile: def.CacheTrustedCAFile,
		AllowedHostnames: def.CacheAllowedHostnames, QuotaBytes: def.CacheQuotaBytes, Compaction: def.CacheCompaction,
	}
}

// exportStore is the etcd of the exporter.
func (def Config) exportStore() etcd.Config {
	return etcd.Config{KVStoreOpt: def.ExportKVStoreOpt, KVStoreLeaseTTL: def.ExportLeaseTTL}
}

// cacheStore is the etcd of the cache, whose keys are on no lease.
func (def Config) cacheStore(cache inclustercache.Config) etcd.Config {
	return cache.Pace(etcd.Config{KVStoreOpt: def.CacheKVStoreOpt, KVStoreLeaseTTL: etcd.DefaultConfig.KVStoreLeaseTTL})
}

// external says whether the cache has an etcd that isn't embedded, which one replica
// alone may write to.
func (def Config) external() bool {
	return def.CacheKVStoreOpt[etcd.OptAddress] != "" || def.CacheKVStoreOpt[etcd.OptConfig] != ""
}

// reads is what both together need of Kubernetes, which is read once for them.
func (def Config) reads(cache inclustercache.Config) reading.Options {
	switch {
	case def.Cache && !def.Export:
		return cache.Reads()
	case def.Cache:
		return reading.Options{Spacing: cache.Reads().Spacing}
	}
	return reading.Options{Off: !def.Export}
}

// validate refuses what would keep the replica that leads from starting, before any does.
func (def Config) validate() error {
	if def.Export {
		if _, err := def.exportStore().Client(); err != nil {
			return fmt.Errorf("--%s, given as --%s and --%s: %w", flagExport, flagExportStore, flagExportLease, err)
		}
	}
	if _, err := etcd.ParseOptions(def.CacheKVStoreOpt); err != nil {
		return fmt.Errorf("given as --%s: %w", flagCacheStore, err)
	}
	return nil
}
