// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

const dbAnswer = "10.1.0.11/32 shop/db 65547 at 172.18.0.2, 65547 is db"

// TestCertificates: who shows a certificate of the CA, with an allowed name, is
// answered, and nobody else.
func TestCertificates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	ca.issue("by-common-name", "agent.west")
	ca.issue("by-dns-name", "someone", "x.west", "Agents.West")
	ca.issue("wildcard", "someone", "*.west")
	ca.issue("not-allowed", "someone", "agent.west.example")
	ca.issue("star", "*")
	other.issue("by-common-name", "agent.west")
	flags := secured(t, ca, "agent.west,agents.west")
	s := newSources(t, flags)
	url := "https://" + s.address
	eventually(t, readThrough(t, ca.config(url, ca, "by-common-name")), question(dbAddr, 0), dbAnswer)
	eventually(t, readThrough(t, ca.config(url, ca, "by-dns-name")), question(dbAddr, 0), dbAnswer)

	for _, name := range []string{"not-allowed", "wildcard", "star"} {
		path := ca.config(url, ca, name)
		_, err := resolve(t.Context(), readThrough(t, path), question(dbAddr, 0))
		require.ErrorIs(t, err, ondemand.ErrRefused)
		require.ErrorContains(t, err, "is not one of --ondemand-allowed-names")
		client := etcdClient(t, path)
		_, err = client.Status(t.Context(), url)
		require.Equal(t, codes.PermissionDenied, etcd.CodeOf(err))
		_, err = client.Grant(t.Context(), 5)
		require.Equal(t, codes.PermissionDenied, etcd.CodeOf(err))
		_, err = client.Put(t.Context(), "x", "y")
		require.Equal(t, codes.PermissionDenied, etcd.CodeOf(err))
		stream, err := pb.NewMaintenanceClient(client.ActiveConnection()).Snapshot(t.Context(), &pb.SnapshotRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	}
	for name, path := range map[string]string{
		"another CA's certificate":  ca.config(url, other, "by-common-name"),
		"no certificate":            ca.config(url, nil, ""),
		"no TLS":                    writeConfig(t, "endpoints: [\"http://"+s.address+"\"]\n"),
		"it trusts nobody we know":  other.config(url, ca, "by-common-name"),
		"a certificate for another": ca.config("https://[::1]:1", ca, "by-common-name"),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := resolve(ctx, readThrough(t, path), question(dbAddr, 0))
		cancel()
		require.ErrorIs(t, err, ondemand.ErrUnavailable, name)
	}
}

// TestEveryCertificate: with "*" the CA alone decides.
func TestEveryCertificate(t *testing.T) {
	ca := newAuthority(t)
	ca.issue("agent", "whoever")
	flags := secured(t, ca, "*")
	s := newSources(t, flags)
	eventually(t, readThrough(t, ca.config("https://"+s.address, ca, "agent")), question(dbAddr, 0), dbAnswer)
}

// TestRotation: certificates that are replaced on disk, the CA's included, are those of
// the next connection, without a restart.
func TestRotation(t *testing.T) {
	ca := newAuthority(t)
	ca.issue("agent", "agent")
	s := newSources(t, secured(t, ca, "agent"))
	url := "https://" + s.address
	eventually(t, readThrough(t, ca.config(url, ca, "agent")), question(dbAddr, 0), dbAnswer)

	old := newAuthority(t) // keeps what ca had
	old.cert, old.key = ca.cert, ca.key
	old.sign("ca", ca.cert)
	old.issue("agent", "agent")

	ca.renew()
	ca.issue("server", "kvstoremesh", "localhost")
	ca.issue("agent", "agent")
	eventually(t, readThrough(t, ca.config(url, ca, "agent")), question(dbAddr, 0), dbAnswer)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := resolve(ctx, readThrough(t, ca.config(url, old, "agent")), question(dbAddr, 0))
	require.ErrorIs(t, err, ondemand.ErrUnavailable)

	// A client that stays takes the certificate that it has then, and finds a server
	// that was started again.
	resolver := readThrough(t, ca.config(url, ca, "agent"))
	eventually(t, resolver, question(dbAddr, 0), dbAnswer)
	ca.issue("agent", "somebody else")
	s.mesh.Restart()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := resolve(t.Context(), resolver, question(dbAddr, 0))
		require.ErrorIs(c, err, ondemand.ErrRefused)
	}, patience, tick)
	ca.issue("agent", "agent")
	s.mesh.Restart()
	eventually(t, resolver, question(dbAddr, 0), dbAnswer)
}

// TestUnreadableCertificates: while the files can't be read the last good ones go on
// being used.
func TestUnreadableCertificates(t *testing.T) {
	ca := newAuthority(t)
	ca.issue("agent", "agent")
	s := newSources(t, secured(t, ca, "agent"))
	path := ca.config("https://"+s.address, ca, "agent")
	good, err := os.ReadFile(ca.file("ca.crt"))
	require.NoError(t, err)
	// What clients trust stays.
	trusted := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(trusted, good, 0o600))
	config, err := os.ReadFile(path)
	require.NoError(t, err)
	path = writeConfig(t, strings.Replace(string(config), ca.file("ca.crt"), trusted, 1))
	eventually(t, readThrough(t, path), question(dbAddr, 0), dbAnswer)

	for _, file := range []string{"ca.crt", "server.crt", "server.key"} {
		good, err := os.ReadFile(ca.file(file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(ca.file(file), []byte("junk"), 0o600))
		eventually(t, readThrough(t, path), question(dbAddr, 0), dbAnswer)
		require.NoError(t, os.Remove(ca.file(file)))
		eventually(t, readThrough(t, path), question(dbAddr, 0), dbAnswer)
		require.NoError(t, os.WriteFile(ca.file(file), good, 0o600))
		eventually(t, readThrough(t, path), question(dbAddr, 0), dbAnswer)
	}
}
