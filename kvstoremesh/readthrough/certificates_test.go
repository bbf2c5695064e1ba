// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough_test

import (
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

	"github.com/stretchr/testify/require"
)

// authority is a CA, whose certificate is in the file ca.crt of its directory.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.renew()
	return a
}

// renew makes it another CA, of the same name and in the same file.
func (a *authority) renew() {
	a.cert, a.key = nil, nil
	a.cert, a.key = a.sign("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue signs a certificate, for servers and clients alike, into NAME.crt and NAME.key.
func (a *authority) issue(name, commonName string, dnsNames ...string) {
	a.sign(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: commonName}, DNSNames: dnsNames, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func (a *authority) sign(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: encoded},
	} {
		require.NoError(a.t, os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600))
	}
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert, key
}

// config writes the configuration of a client that trusts this CA and shows the
// certificate NAME of another, or none if that is nil; and gives its path.
func (a *authority) config(address string, of *authority, name string) string {
	text := "endpoints: [\"" + address + "\"]\ntrusted-ca-file: " + a.file("ca.crt") + "\n"
	if of != nil {
		text += "cert-file: " + of.file(name+".crt") + "\nkey-file: " + of.file(name+".key") + "\n"
	}
	return writeConfig(a.t, text)
}

// writeConfig writes the configuration of a client, and gives its path.
func writeConfig(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "etcd.config")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}
