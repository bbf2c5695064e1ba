// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConfigIsChecked(t *testing.T) {
	require.NoError(t, DefaultConfig.validate())
	for flag, change := range map[string]func(*Config){
		"--per-cluster-ready-timeout": func(c *Config) { c.PerClusterReadyTimeout = -1 },
		"--global-ready-timeout":      func(c *Config) { c.GlobalReadyTimeout = -1 },
		"--drain-grace-period":        func(c *Config) { c.DrainGracePeriod = -1 },
		"--max-keys-per-cluster":      func(c *Config) { c.MaxKeysPerCluster = 0 },
	} {
		config := DefaultConfig
		change(&config)
		require.ErrorContains(t, config.validate(), flag)
	}
}
