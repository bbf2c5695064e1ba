// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestValidate refuses what would be served to others than was meant.
func TestValidate(t *testing.T) {
	files := func(c Config) Config {
		c.CertFile, c.KeyFile, c.TrustedCAFile = "a", "b", "c"
		return c
	}
	for name, test := range map[string]struct {
		config Config
		err    string
	}{
		"loopback":            {Config{ListenAddress: "127.0.0.1:0"}, ""},
		"socket":              {Config{ListenAddress: "unix:///x"}, ""},
		"certificates":        {files(Config{ListenAddress: ":2379", AllowedNames: []string{"a"}}), ""},
		"every certificate":   {files(Config{ListenAddress: ":2379", AllowedNames: []string{"*"}}), ""},
		"no names":            {files(Config{ListenAddress: ":2379"}), "--ondemand-allowed-names is missing"},
		"empty name":          {files(Config{ListenAddress: ":2379", AllowedNames: []string{""}}), "empty name"},
		"names alone":         {Config{ListenAddress: "127.0.0.1:0", AllowedNames: []string{"a"}}, "no effect without --ondemand-cert-file"},
		"key alone":           {Config{ListenAddress: "127.0.0.1:0", KeyFile: "a"}, "-file is missing"},
		"no CA":               {Config{ListenAddress: "127.0.0.1:0", CertFile: "a", KeyFile: "b"}, "--ondemand-trusted-ca-file is missing"},
		"no port":             {Config{ListenAddress: "localhost"}, "neither host:port nor unix:///path"},
		"relative socket":     {Config{ListenAddress: "unix://x"}, "absolute path"},
		"one slash":           {Config{ListenAddress: "unix:/tmp/x"}, `--ondemand-listen-address="unix:/tmp/x": a socket is unix:///path`},
		"negative time":       {Config{ListenAddress: "127.0.0.1:0", CacheTTL: -time.Second}, "--ondemand-cache-ttl"},
		"URL, not an address": {Config{ListenAddress: "http://127.0.0.1:1"}, "neither host:port nor unix:///path"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.config.validate()
			if test.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.err)
		})
	}
}

// TestWithout refuses what has no effect where nothing is served.
func TestWithout(t *testing.T) {
	require.NoError(t, DefaultConfig.without())
	for flag, set := range map[string]func(*Config){
		"ondemand-cert-file":       func(c *Config) { c.CertFile = "a" },
		"ondemand-key-file":        func(c *Config) { c.KeyFile = "a" },
		"ondemand-trusted-ca-file": func(c *Config) { c.TrustedCAFile = "a" },
		"ondemand-allowed-names":   func(c *Config) { c.AllowedNames = []string{"*"} },
		"ondemand-cache-ttl":       func(c *Config) { c.CacheTTL = 0 },
	} {
		config := DefaultConfig
		set(&config)
		require.ErrorContains(t, config.without(), "--"+flag+" has no effect without --ondemand-listen-address")
	}
}

// TestListen: without certificates only who is on this machine gets a connection.
func TestListen(t *testing.T) {
	for _, address := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0"} {
		_, err := Config{ListenAddress: address}.listen(t.Context())
		require.ErrorContains(t, err, address)
		require.ErrorContains(t, err, "can't be served without --ondemand-cert-file")
	}
	for _, address := range []string{"127.0.0.1:0", "localhost:0"} {
		listener, err := Config{ListenAddress: address}.listen(t.Context())
		require.NoError(t, err)
		require.True(t, listener.Addr().(*net.TCPAddr).IP.IsLoopback())
		require.NoError(t, listener.Close())
	}
	listener, err := Config{ListenAddress: ":0", CertFile: "a"}.listen(t.Context())
	require.NoError(t, err)
	require.NoError(t, listener.Close())
}

// TestListenUnix: the socket is its user's alone, and takes the place of one that
// nobody serves any more, and of nothing else.
func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	config := Config{ListenAddress: "unix://" + path}
	first, err := config.listen(t.Context())
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket|0o600, info.Mode())

	_, err = config.listen(t.Context())
	require.ErrorContains(t, err, "another process serves there")

	first.(*net.UnixListener).SetUnlinkOnClose(false) // as if it had been killed
	require.NoError(t, first.Close())
	second, err := config.listen(t.Context())
	require.NoError(t, err)
	require.NoError(t, second.Close())

	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	_, err = config.listen(t.Context())
	require.ErrorContains(t, err, "isn't a socket")
	require.FileExists(t, path)
}

// TestCredentials: certificates that can't be used end the start, and are named.
func TestCredentials(t *testing.T) {
	_, err := newCertificates(Config{CertFile: "/nowhere/crt", KeyFile: "/nowhere/key", TrustedCAFile: "/nowhere/ca"}, nil, nil)
	require.ErrorContains(t, err, `--ondemand-cert-file "/nowhere/crt"`)
	certificates, err := newCertificates(Config{}, nil, nil)
	require.NoError(t, err)
	require.Equal(t, "insecure", certificates.credentials().Info().SecurityProtocol)
}
