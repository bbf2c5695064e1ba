// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	flagResources   = "incluster-cache-resources"
	flagMaxLists    = "incluster-cache-max-concurrent-lists"
	flagCommitDelay = "incluster-cache-commit-delay"
)

// Config of a cache.
type Config struct {
	// Resources are what it offers: see wire.ParseCacheResources.
	Resources []string `mapstructure:"incluster-cache-resources"`
	// MaxConcurrentLists bounds the lists that its embedded etcd serves at once.
	MaxConcurrentLists int `mapstructure:"incluster-cache-max-concurrent-lists"`
	// CommitDelay is the longest wait between two commits, under load.
	CommitDelay time.Duration `mapstructure:"incluster-cache-commit-delay"`
}

// DefaultConfig offers everything that a cache can.
var DefaultConfig = Config{
	Resources:          words(wire.CacheResources),
	MaxConcurrentLists: 16,
	CommitDelay:        50 * time.Millisecond,
}

// commitBatch makes a commit wait for its whole time, as long as the load lasts:
// each commit is a message to each agent and each resource that it touches, so that
// the wait alone, and not the rate of changes, says what that costs. It is more
// than a commit holds by default; a full one doesn't wait.
const commitBatch = 4096

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.StringSlice(flagResources, def.Resources,
		"What the cache offers to agents; what is left out isn't read from Kubernetes either")
	flags.Int(flagMaxLists, def.MaxConcurrentLists,
		"How many lists the embedded etcd serves at once; agents beyond that are told when to come back")
	flags.Duration(flagCommitDelay, def.CommitDelay,
		"Longest wait between two writes to etcd while there are many changes, so that agents get them in fewer messages; "+
			"a change after a pause never waits. --kvstore-opt "+etcd.OptCommitDelay+" overrides it")
}

// validate names the flag at fault.
func (def Config) validate() error {
	if _, err := wire.ParseCacheResources(def.Resources); err != nil {
		return fmt.Errorf("--%s: %w", flagResources, err)
	}
	if def.MaxConcurrentLists < 1 {
		return fmt.Errorf("--%s=%d: must be at least 1", flagMaxLists, def.MaxConcurrentLists)
	}
	if def.CommitDelay < 0 {
		return fmt.Errorf("--%s=%v: must not be negative", flagCommitDelay, def.CommitDelay)
	}
	return nil
}

// offer is what the cache offers; nil where the flag is wrong, which validate says.
func (def Config) offer() []wire.Resource {
	resources, err := wire.ParseCacheResources(def.Resources)
	if err != nil {
		return nil
	}
	return resources
}

// pace sets the cache's own pace of commits where --kvstore-opt says nothing of it.
func (def Config) pace(cfg etcd.Config) etcd.Config {
	for option, value := range map[string]string{
		etcd.OptCommitDelay: def.CommitDelay.String(),
		etcd.OptCommitBatch: strconv.Itoa(commitBatch),
	} {
		if _, ok := cfg.KVStoreOpt[option]; !ok {
			cfg = cfg.With(option, value)
		}
	}
	return cfg
}

func words(resources []wire.Resource) []string {
	out := make([]string, len(resources))
	for i, resource := range resources {
		out[i] = string(resource)
	}
	return out
}
