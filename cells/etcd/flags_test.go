// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

func TestClientFlags(t *testing.T) {
	for _, address := range []string{
		"http://127.0.0.1:2379", "https://etcd.example:2379/", "http://[::1]:2379", "127.0.0.1:2379", "unix:///run/etcd.sock",
		"http://a:1,http://b:1",
	} {
		cfg := DefaultConfig
		cfg.KVStoreOpt = map[string]string{OptAddress: address}
		_, err := cfg.Client()
		require.NoError(t, err, address)
	}
	for _, address := range []string{"nonsense", "ftp://a:1", "http://a", "http://:1", "http://a:70000", "unix://", "http://a:1,"} {
		cfg := DefaultConfig
		cfg.KVStoreOpt = map[string]string{OptAddress: address}
		_, err := cfg.Client()
		require.ErrorContains(t, err, "--kvstore-opt etcd.address", address)
	}
	for _, ttl := range []time.Duration{0, -time.Second, time.Millisecond} {
		cfg := Config{KVStoreOpt: map[string]string{OptAddress: "http://a:1"}, KVStoreLeaseTTL: ttl}
		_, err := cfg.Client()
		require.ErrorContains(t, err, "--kvstore-lease-ttl")
	}
}

func TestServerFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, DefaultServerFlags.validate())
	for flag, change := range map[string]func(*ServerFlags){
		"--listen-client-urls":        func(f *ServerFlags) { f.ListenClientURLs = "nonsense" },
		"--quota-backend-bytes":       func(f *ServerFlags) { f.QuotaBytes = -1 },
		"--auto-compaction-retention": func(f *ServerFlags) { f.Compaction = -1 },
		// In plain text, although asked to let only known clients in.
		"--trusted-ca-file":              func(f *ServerFlags) { f.TrustedCAFile = file },
		"--client-cert-allowed-hostname": func(f *ServerFlags) { f.AllowedHostnames = "agent" },
		"--cert-file":                    func(f *ServerFlags) { f.ListenClientURLs = "https://127.0.0.1:0" },
		"--key-file": func(f *ServerFlags) {
			f.ListenClientURLs, f.CertFile, f.KeyFile = "https://127.0.0.1:0", file, file+".missing"
		},
	} {
		flags := DefaultServerFlags
		change(&flags)
		require.ErrorContains(t, flags.validate(), flag)
	}
}

// TestServerLeavesNothing: a port that is taken is no reason to leave files.
func TestServerLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	taken := startServer(t, ServerConfig{Dir: filepath.Join(t.TempDir(), "data")})
	flags := DefaultServerFlags
	flags.ListenClientURLs = taken.URL()
	lc := &cell.DefaultLifecycle{}
	log := hivetest.Logger(t)
	_, err := newServer(serverParams{Log: log, Lifecycle: lc, Flags: flags}, "local")
	require.NoError(t, err)
	require.ErrorContains(t, lc.Start(log, t.Context()), "address already in use")
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left)
}
