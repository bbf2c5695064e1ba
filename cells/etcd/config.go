// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// The keys that --kvstore-opt knows. Those that upstream has, have its names.
const (
	OptAddress            = "etcd.address"
	OptConfig             = "etcd.config"
	OptQPS                = "etcd.qps"
	OptMaxInflight        = "etcd.maxInflight"
	OptKeepaliveHeartbeat = "etcd.keepaliveHeartbeat"
	OptKeepaliveTimeout   = "etcd.keepaliveTimeout"
	// OptPageBytes and OptCommitDelay are ours: see Options.
	OptPageBytes   = "etcd.pageBytes"
	OptCommitDelay = "etcd.commitDelay"
	// OptCommitBatch and OptCommitGather are ours: see Options.
	OptCommitBatch  = "etcd.commitBatch"
	OptCommitGather = "etcd.commitGather"
	// OptMaxTxnOps is ours: the number of operations to try in one transaction.
	OptMaxTxnOps = "etcd.maxTxnOps"
	// OptLimit and OptBootstrapQPS are upstream's and have no meaning here:
	// pages are bounded by bytes, and a bootstrap is few commits.
	OptLimit        = "etcd.limit"
	OptBootstrapQPS = "etcd.bootstrapQps"
)

// Config is the etcd of the local cluster, by upstream's flags.
type Config struct {
	KVStoreOpt      map[string]string `mapstructure:"kvstore-opt"`
	KVStoreLeaseTTL time.Duration     `mapstructure:"kvstore-lease-ttl"`
}

// DefaultConfig has upstream's lease TTL (15 minutes).
var DefaultConfig = Config{KVStoreLeaseTTL: 15 * time.Minute}

// Flags registers the flags.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.StringToString("kvstore-opt", c.KVStoreOpt,
		"Key-value store options, e.g. etcd.config=/var/lib/etcd-config/etcd.config or etcd.address=http://127.0.0.1:2379; "+
			"etcd.qps bounds commits per second, each of up to etcd.maxTxnOps operations")
	flags.Duration("kvstore-lease-ttl", c.KVStoreLeaseTTL, "Time-to-live for the KVstore lease.")
}

// Client gives the configuration of the local cluster's client, or an error
// that names the option at fault.
func (c Config) Client() (ClientConfig, error) {
	opts, err := ParseOptions(c.KVStoreOpt)
	if err != nil {
		return ClientConfig{}, err
	}
	cfg := ClientConfig{ConfigPath: c.KVStoreOpt[OptConfig], Options: opts, LeaseTTL: c.KVStoreLeaseTTL}
	if address := c.KVStoreOpt[OptAddress]; address != "" && cfg.ConfigPath == "" {
		cfg.Endpoints = strings.Split(address, ",")
	}
	if cfg.ConfigPath == "" && len(cfg.Endpoints) == 0 {
		return ClientConfig{}, fmt.Errorf("no etcd: --kvstore-opt needs %s or %s", OptConfig, OptAddress)
	}
	for _, endpoint := range cfg.Endpoints {
		if err := checkEndpoint(endpoint); err != nil {
			return ClientConfig{}, fmt.Errorf("--kvstore-opt %s=%q: %w", OptAddress, endpoint, err)
		}
	}
	if cfg.LeaseTTL < minLeaseTTL {
		return ClientConfig{}, fmt.Errorf("--kvstore-lease-ttl=%v: must be at least %v", cfg.LeaseTTL, minLeaseTTL)
	}
	return cfg, nil
}

// external says whether the options name an etcd.
func (c Config) external() bool {
	return c.KVStoreOpt[OptAddress] != "" || c.KVStoreOpt[OptConfig] != ""
}

// at is the configuration with another address.
func (c Config) at(address string) Config { return c.With(OptAddress, address) }

// With is the configuration with one option set to a value.
func (c Config) With(option, value string) Config {
	opts := maps.Clone(c.KVStoreOpt)
	if opts == nil {
		opts = make(map[string]string, 1)
	}
	opts[option] = value
	c.KVStoreOpt = opts
	return c
}

// minLeaseTTL is etcd's resolution of a time to live.
const minLeaseTTL = time.Second

// checkEndpoint refuses what can't be dialled, which a client would try without
// end: an etcd that isn't there yet looks the same to it.
func checkEndpoint(endpoint string) error {
	scheme, rest, found := strings.Cut(endpoint, "://")
	if !found {
		scheme, rest = "", endpoint
	}
	switch scheme {
	case "unix", "unixs":
		if rest == "" {
			return errors.New("it has no path")
		}
		return nil
	case "", "http", "https":
		host, port, err := net.SplitHostPort(strings.TrimSuffix(rest, "/"))
		if err != nil {
			return fmt.Errorf("not http://host:port, https://host:port or unix:///path: %w", err)
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil || host == "" {
			return errors.New("not http://host:port, https://host:port or unix:///path")
		}
		return nil
	}
	return fmt.Errorf("the scheme %q is none of http, https and unix", scheme)
}

// Options tunes clients, Readers and Writers.
type Options struct {
	// QPS bounds the commits a Writer makes per second. A commit holds all that
	// gathered since the last one, so that this bounds cost, not throughput.
	QPS int
	// MaxInflight bounds the commits under way at once.
	MaxInflight int
	// MaxTxnOps is how many operations a commit holds at most. Where the server
	// allows less (etcd's own default is 128), the Writer finds out and keeps to it.
	MaxTxnOps int
	// CommitDelay is the longest that a Writer waits for more operations under
	// sustained load. An operation in a quiet mesh never waits.
	CommitDelay time.Duration
	// CommitBatch is how many operations it waits for, if they come in that time.
	CommitBatch int
	// CommitGather is how long the first operation of a commit waits in any case,
	// full commits excepted: what is applied to several Scopes at about the same time
	// then comes in one commit. The default is not at all.
	CommitGather time.Duration
	// PageBytes is the size that pages of a list are aimed at. Etcd counts the
	// rest of the range for each page, so that small pages make large lists
	// quadratic: those of more than some 30 MiB are read in pages of up to four
	// times the size.
	PageBytes int
	// KeepaliveHeartbeat and KeepaliveTimeout find a dead connection.
	KeepaliveHeartbeat, KeepaliveTimeout time.Duration
}

// DefaultOptions carry well over 5,000 changes per second: 200 commits of up to
// 1,024 operations. Keep-alives are upstream's.
var DefaultOptions = Options{
	QPS:                200,
	MaxInflight:        4,
	MaxTxnOps:          1024,
	CommitDelay:        10 * time.Millisecond,
	CommitBatch:        pacerBatch,
	PageBytes:          4 << 20,
	KeepaliveHeartbeat: 15 * time.Second,
	KeepaliveTimeout:   25 * time.Second,
}

// ParseOptions reads the tuning part of --kvstore-opt over DefaultOptions. Every
// unknown key and every malformed value is named in the error.
func ParseOptions(opts map[string]string) (Options, error) {
	var (
		out  = DefaultOptions
		errs []error
	)
	number := func(key, value string, dst *int) {
		n, err := strconv.Atoi(value)
		if err != nil || n <= 0 {
			errs = append(errs, fmt.Errorf("--kvstore-opt %s=%q: not a positive number", key, value))
			return
		}
		*dst = n
	}
	duration := func(key, value string, dst *time.Duration) {
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("--kvstore-opt %s=%q: not a duration", key, value))
			return
		}
		*dst = d
	}
	for _, key := range slices.Sorted(maps.Keys(opts)) {
		value := opts[key]
		switch key {
		case OptAddress, OptConfig, OptLimit, OptBootstrapQPS:
		case OptQPS:
			number(key, value, &out.QPS)
		case OptMaxInflight:
			number(key, value, &out.MaxInflight)
		case OptMaxTxnOps:
			number(key, value, &out.MaxTxnOps)
		case OptPageBytes:
			number(key, value, &out.PageBytes)
		case OptCommitBatch:
			number(key, value, &out.CommitBatch)
		case OptCommitDelay:
			duration(key, value, &out.CommitDelay)
		case OptCommitGather:
			duration(key, value, &out.CommitGather)
		case OptKeepaliveHeartbeat:
			duration(key, value, &out.KeepaliveHeartbeat)
		case OptKeepaliveTimeout:
			duration(key, value, &out.KeepaliveTimeout)
		default:
			errs = append(errs, fmt.Errorf("--kvstore-opt %s: unknown option", key))
		}
	}
	return out, errors.Join(errs...)
}

// keyPair is the part of etcd's client configuration file that its own parser
// reads once and we read again at each handshake, so that a rotated certificate
// is picked up without a restart.
type keyPair struct {
	Certfile string `json:"cert-file"`
	Keyfile  string `json:"key-file"`
}

// readKeyPair gives the file names in the configuration at path.
func readKeyPair(path string) (keyPair, error) {
	var pair keyPair
	data, err := os.ReadFile(path)
	if err != nil {
		return pair, err
	}
	return pair, yaml.Unmarshal(data, &pair)
}
