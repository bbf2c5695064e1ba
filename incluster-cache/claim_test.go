// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// TestJudge has what an operator reads when the cache refuses an etcd; the scripts
// incluster-cache-claim and -resources have the rest.
func TestJudge(t *testing.T) {
	one := func(key string) []string { return []string{key} }
	own := one("cilium/incluster-cache/east")
	for name, tt := range map[string]struct {
		configs, copies, caches, any []string
		want                         string
	}{
		"ours": {caches: own, any: own},
		"a clustermesh-apiserver's": {
			configs: one("cilium/cluster-config/east"), caches: own, any: own,
			want: `holds "cilium/cluster-config/east", and is read by other clusters`,
		},
		"a KVStoreMesh's": {
			copies: one("cilium/cache/nodes/v1/west/n"), any: one("cilium/cache/nodes/v1/west/n"),
			want: "is that of a KVStoreMesh",
		},
		"another cache's": {
			caches: one("cilium/incluster-cache/west"), any: own,
			want: `is the cache of cluster "west", and --cluster-name is "east"`,
		},
		"Cilium's own": {
			any:  one("cilium/state/identities/v1/id/1"),
			want: `holds "cilium/state/identities/v1/id/1", which no cache has written`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := judge("east", tt.configs, tt.copies, tt.caches, tt.any)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrNotOurs)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestConfigValidate(t *testing.T) {
	require.NoError(t, DefaultConfig.validate())
	for flag, change := range map[string]func(*Config){
		"--incluster-cache-resources":            func(c *Config) { c.Resources = []string{"pods"} },
		"--incluster-cache-max-concurrent-lists": func(c *Config) { c.MaxConcurrentLists = 0 },
		"--incluster-cache-commit-delay":         func(c *Config) { c.CommitDelay = -1 },
	} {
		cfg := DefaultConfig
		change(&cfg)
		require.ErrorContains(t, cfg.validate(), flag)
	}
}

// What --kvstore-opt says of the pace counts.
func TestConfigPace(t *testing.T) {
	cfg := DefaultConfig.Pace(etcd.Config{})
	options, err := etcd.ParseOptions(cfg.KVStoreOpt)
	require.NoError(t, err)
	require.Zero(t, options.CommitDelay)
	require.Equal(t, commitGather, options.CommitGather)
	require.Equal(t, DefaultConfig.CommitDelay, DefaultConfig.spacing()+commitGather)

	given := map[string]string{etcd.OptCommitDelay: "1s"}
	cfg = DefaultConfig.Pace(etcd.Config{KVStoreOpt: given})
	require.Equal(t, "1s", cfg.KVStoreOpt[etcd.OptCommitDelay])
	require.Len(t, given, 1, "the flag's own map isn't touched")
}
