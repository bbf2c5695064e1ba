// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
)

// TestCertificatesReadAgain: at the start a file that has no certificate is refused by
// the name of its flag; later it is said once to health, counted each time, and logged
// now and then.
func TestCertificatesReadAgain(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate
	server.Close()
	cert := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	dir := t.TempDir()
	config := Config{CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), TrustedCAFile: filepath.Join(dir, "ca")}
	write := func(file, text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	encoded := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	write(config.CertFile, encoded)
	write(config.KeyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))

	var log bytes.Buffer
	metrics := newMetrics()
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for _, text := range []string{"", "junk"} {
		write(config.TrustedCAFile, text)
		_, err = newCertificates(config, logger, metrics)
		require.ErrorContains(t, err, `--ondemand-trusted-ca-file "`+config.TrustedCAFile+`": there is no certificate in it`)
	}
	write(config.TrustedCAFile, encoded)
	certificates, err := newCertificates(config, logger, metrics)
	require.NoError(t, err)
	var said []error
	certificates.watch(func(err error) { said = append(said, err) })

	good := certificates.current()
	require.Empty(t, said)
	write(config.TrustedCAFile, "junk")
	for range 10 {
		require.Same(t, good, certificates.current())
	}
	require.Len(t, said, 1)
	require.ErrorContains(t, said[0], "--ondemand-trusted-ca-file")
	var counted dto.Metric
	require.NoError(t, metrics.unreadable.Write(&counted))
	require.EqualValues(t, 10, counted.GetCounter().GetValue())
	require.Equal(t, 1, strings.Count(log.String(), "can't be read again"))
	require.NoError(t, os.Remove(config.TrustedCAFile))
	require.Same(t, good, certificates.current())
	require.Len(t, said, 2)

	write(config.TrustedCAFile, encoded)
	require.NotSame(t, good, certificates.current())
	require.Len(t, said, 3)
	require.NoError(t, said[2])
}
