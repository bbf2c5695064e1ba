// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
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
	// CommitDelay is the longest wait between two commits, under load. Changes wait at
	// the entrance, from where on they stay together: for each stage that they pass,
	// twenty changes in one batch cost little more than one.
	CommitDelay time.Duration `mapstructure:"incluster-cache-commit-delay"`
}

// DefaultConfig offers everything that a cache can.
var DefaultConfig = Config{
	Resources:          words(wire.CacheResources),
	MaxConcurrentLists: 16,
	CommitDelay:        50 * time.Millisecond,
}

// commitGather is how long the changes of one transaction on the tables have to come
// to the Writer, which is told of each resource by itself, so that they are one commit:
// each is a message to each agent. They take some 0.1 ms.
const commitGather = 2 * time.Millisecond

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.StringSlice(flagResources, def.Resources,
		"What the cache offers to agents; what is left out isn't read from Kubernetes either")
	flags.Int(flagMaxLists, def.MaxConcurrentLists,
		"How many lists the embedded etcd serves at once; agents beyond that are told when to come back")
	flags.Duration(flagCommitDelay, def.CommitDelay,
		"Longest wait between two writes to etcd while there are many changes, so that agents get them in fewer messages; "+
			"a change after a pause of that length doesn't wait")
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

// spacing is the time between two batches of changes; what gathers behind it waits in
// the Writer for as long as that takes.
func (def Config) spacing() time.Duration { return max(time.Nanosecond, def.CommitDelay-commitGather) }

// Pace has the Writer commit what comes at once, since it has waited already, unless
// --kvstore-opt says something else.
func (def Config) Pace(cfg etcd.Config) etcd.Config {
	for option, value := range map[string]string{
		etcd.OptCommitDelay:  "0s",
		etcd.OptCommitGather: commitGather.String(),
	} {
		if _, ok := cfg.KVStoreOpt[option]; !ok {
			cfg = cfg.With(option, value)
		}
	}
	return cfg
}

// Reads is what the cache needs of Kubernetes: of resources that aren't offered, nothing.
func (def Config) Reads() reading.Options {
	return reading.Options{Resources: def.offer(), Spacing: def.spacing()}
}

func words(resources []wire.Resource) []string {
	out := make([]string, len(resources))
	for i, resource := range resources {
		out[i] = string(resource)
	}
	return out
}
