// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// authority is a CA that signs certificates for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, name, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue signs a certificate for a name, for server and client alike.
func (a *authority) issue(t testing.TB, name string) {
	a.sign(t, name, &x509.Certificate{
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) sign(t testing.TB, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: encoded},
	} {
		require.NoError(t, os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600))
	}
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert, key
}

// config writes the configuration of a client with such a certificate.
func (a *authority) config(t testing.TB, name, url, trusted string) string {
	path := a.file(name + ".yaml")
	text := "endpoints: [" + url + "]\ntrusted-ca-file: " + trusted + "\n"
	if name != "nobody" {
		text += "cert-file: " + a.file(name+".crt") + "\nkey-file: " + a.file(name+".key") + "\n"
	}
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// runOwnServer runs a hive with a client, and a server for it unless the flags say
// otherwise.
func runOwnServer(t *testing.T, args ...string) (*Client, *OwnServer) {
	var client *Client
	var server *OwnServer
	h := hive.New(Cell, OwnServerCell, cell.Invoke(func(c *Client, s *OwnServer) { client, server = c, s }))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse(args))
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
	return client, server
}

// TestOwnServerWithTLS: the hive's own client needs no certificate, others one of
// the CA and for an allowed name.
func TestOwnServerWithTLS(t *testing.T) {
	ours, theirs := newAuthority(t, "ca"), newAuthority(t, "ca")
	ours.issue(t, "server")
	ours.issue(t, "agent")
	ours.issue(t, "other-cluster")
	theirs.issue(t, "agent")
	client, server := runOwnServer(t,
		"--listen-client-urls=https://127.0.0.1:0", "--trusted-ca-file="+ours.file("ca.crt"),
		"--cert-file="+ours.file("server.crt"), "--key-file="+ours.file("server.key"),
		"--client-cert-allowed-hostname=agent")
	require.True(t, server.runs())
	put(t, client, "p/a", "1")

	reaches := func(config string) error {
		c := newTestClient(t, ClientConfig{ConfigPath: config})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ready, stop := context.WithCancelCause(ctx)
		_, err := c.WaitReady(ready, "p/a", func(err error) { stop(err) })
		stop(nil)
		if err == nil {
			require.Equal(t, map[string]string{"a": "1"}, content(t, c, "p/"))
		}
		return err
	}
	trusted := ours.file("ca.crt")
	require.NoError(t, reaches(ours.config(t, "agent", server.URL(), trusted)))
	require.Error(t, reaches(ours.config(t, "other-cluster", server.URL(), trusted)), "a name that isn't allowed")
	require.Error(t, reaches(ours.config(t, "nobody", server.URL(), trusted)), "no certificate")
	require.Error(t, reaches(theirs.config(t, "agent", server.URL(), trusted)), "a certificate of another CA")
}

func TestOwnServerElsewhere(t *testing.T) {
	external := startServer(t, ServerConfig{})
	client, server := runOwnServer(t, "--kvstore-opt=etcd.address="+external.URL())
	require.False(t, server.runs())
	put(t, client, "p/a", "1")
	require.Equal(t, map[string]string{"a": "1"}, content(t, newTestClient(t, ClientConfig{Endpoints: []string{external.URL()}}), "p/"))

	h := hive.New(Cell, OwnServerCell, cell.Invoke(func(*OwnServer) {}))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse([]string{"--kvstore-opt=etcd.address=" + external.URL(), "--data-dir=/tmp/x"}))
	require.ErrorContains(t, h.Populate(hivetest.Logger(t)), "--data-dir")
}

func TestServerFlagsWarn(t *testing.T) {
	for listen, want := range map[string]string{
		"http://127.0.0.1:2379": "", "http://localhost:2379": "", "http://[::1]:2379": "", "unix:///x": "",
		"http://0.0.0.0:2379": "--trusted-ca-file", "https://10.0.0.1:2379": "--trusted-ca-file",
	} {
		require.Equal(t, want, ServerFlags{ListenClientURLs: listen}.missing(), listen)
	}
	require.Empty(t, ServerFlags{ListenClientURLs: "https://10.0.0.1:2379", TrustedCAFile: "x"}.missing())
}
