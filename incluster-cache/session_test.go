// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	certutil "k8s.io/client-go/util/cert"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func newFollower(cfg etcd.ClientConfig) *follower {
	return &follower{log: slog.New(slog.DiscardHandler), dial: dialAddress, cluster: ownCluster, directory: &directory{etcd: cfg}}
}

// TestRefusedConnection: a replica that refuses the connection is given up at once,
// with that reason and not with the end of a wait.
func TestRefusedConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	_, err = newFollower(etcd.ClientConfig{}).connect(t.Context(), replica{endpoint: "http://" + address, address: address})
	require.ErrorContains(t, err, "connection refused")
}

// TestServerNameIsTheService: whatever address is dialled, the certificate has to be
// that of the Service.
func TestServerNameIsTheService(t *testing.T) {
	const host = "cache.kube-system.svc"
	server, ca := serveTLS(t, host)
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{
		ConfigPath: writeConfig(t, "https://"+host+":2379", ca),
		Dial:       func(ctx context.Context, _ string) (net.Conn, error) { return dialAddress(ctx, server) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	config, err := wire.MarshalCacheConfig(wire.CacheConfig{Resources: wire.CacheResources})
	require.NoError(t, err)
	_, err = client.Etcd().Put(t.Context(), wire.CacheConfigKey(ownCluster.Name), string(config))
	require.NoError(t, err)

	for endpoint, reason := range map[string]string{
		"https://" + host + ":2379":              "",
		"https://other.kube-system.svc:2379":     "certificate is valid for",
		"https://cache.other-namespace.svc:2379": "certificate is valid for",
	} {
		f := newFollower(etcd.ClientConfig{ConfigPath: writeConfig(t, endpoint, ca)})
		f.local = newTestLocal(t)
		conn, err := f.connect(t.Context(), replica{endpoint: endpoint, address: server})
		if reason != "" {
			require.ErrorContains(t, err, reason)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, wire.CacheResources, conn.config.Resources)
		require.NoError(t, conn.client.Close())
	}
}

// serveTLS starts an etcd with a certificate of this name, and gives its address and
// the file of the CA.
func serveTLS(t *testing.T, host string) (address, ca string) {
	t.Helper()
	cert, key, err := certutil.GenerateSelfSignedCertKey(host, nil, nil)
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	// The certificate comes first, then the CA that has signed it.
	leaf, rest := pem.Decode(cert)
	require.NotNil(t, leaf)
	_, err = x509.ParseCertificate(leaf.Bytes)
	require.NoError(t, err)
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{
		Dir: t.TempDir(), ListenURL: "https://127.0.0.1:0",
		CertFile: write("tls.crt", cert), KeyFile: write("tls.key", key),
	})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL(), "https://"), write("ca.crt", rest)
}

func writeConfig(t *testing.T, endpoint, ca string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "etcd.config")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "endpoints:\n- %s\ntrusted-ca-file: %s\n", endpoint, ca), 0o600))
	return path
}

func newTestLocal(t *testing.T) *ingest.Local {
	writer, err := state.NewWriter(statedb.New())
	require.NoError(t, err)
	return ingest.NewLocal(ingest.Options{Log: slog.New(slog.DiscardHandler), Writer: writer, Local: ownCluster})
}

// TestOneConnectionOnly: the client of a session never connects a second time.
func TestOneConnectionOnly(t *testing.T) {
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	var conns []net.Conn
	f := newFollower(etcd.ClientConfig{})
	f.dial = func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dialAddress(ctx, address)
		conns = append(conns, conn)
		return conn, err
	}
	client, err := f.open(replica{endpoint: server.URL(), address: strings.TrimPrefix(server.URL(), "http://")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	_, err = look(t.Context(), client, ownCluster.Name)
	require.NoError(t, err)
	require.Len(t, conns, 1)
	require.NoError(t, conns[0].Close())
	require.Eventually(t, func() bool {
		_, err = look(t.Context(), client, ownCluster.Name)
		return err != nil && strings.Contains(err.Error(), errSpent.Error())
	}, patience, tick)
	require.Len(t, conns, 1)
}

const (
	patience = 20 * time.Second
	tick     = 5 * time.Millisecond
)
