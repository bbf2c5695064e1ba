// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// complaintInterval is how often it is logged that certificates can't be read.
const complaintInterval = time.Minute

// certificates are those of the listener. Files are read for each connection, the CA's
// included, so that a rotated certificate is used without a restart; while they can't be
// read, as between the writes of two of them, the last ones that could be are used.
type certificates struct {
	config  Config
	log     *slog.Logger
	metrics *Metrics
	limit   *rate.Limiter

	mu   sync.Mutex
	good *tls.Config
	err  error
	// changed is told the error, nil if it is over; nil is nobody. It is called under
	// the lock, and doesn't block.
	changed func(error)
}

// newCertificates reads them once. The error names flag and file.
func newCertificates(config Config, log *slog.Logger, metrics *Metrics) (*certificates, error) {
	c := &certificates{config: config, log: log, metrics: metrics, limit: rate.NewLimiter(rate.Every(complaintInterval), 1)}
	if !config.secure() {
		return c, nil
	}
	var err error
	c.good, err = config.readCertificates()
	return c, err
}

// credentials gives what connections are protected by.
func (c *certificates) credentials() credentials.TransportCredentials {
	if !c.config.secure() {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	})
}

// current is the configuration of the next connection.
func (c *certificates) current() *tls.Config {
	c.mu.Lock() // while reading too: what was read last counts
	defer c.mu.Unlock()
	read, err := c.config.readCertificates()
	if err == nil {
		c.good = read
	} else {
		c.metrics.unreadable.Inc()
		if c.limit.Allow() {
			c.log.Warn("Certificates can't be read again, using the last ones that could be", "error", err)
		}
	}
	if text(err) != text(c.err) && c.changed != nil {
		c.changed(err)
	}
	c.err = err
	return c.good
}

// watch has changed told of the error from now on, and of one that there is.
func (c *certificates) watch(changed func(error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = changed
	if c.err != nil {
		changed(c.err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// readCertificates reads the files. The error names flag and file.
func (def Config) readCertificates() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(def.CertFile, def.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading --ondemand-cert-file %q and --ondemand-key-file %q: %w", def.CertFile, def.KeyFile, err)
	}
	pem, err := os.ReadFile(def.TrustedCAFile)
	cas := x509.NewCertPool()
	if err == nil && !cas.AppendCertsFromPEM(pem) {
		err = errors.New("there is no certificate in it")
	}
	if err != nil {
		return nil, fmt.Errorf("reading --ondemand-trusted-ca-file %q: %w", def.TrustedCAFile, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    cas,
		// A ticket would outlive the CA that has signed its client's certificate.
		SessionTicketsDisabled: true,
	}, nil
}
