// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// names are those of the clients that may ask; nil where no certificates are shown.
// A client is told that its name isn't among them, which a failed handshake couldn't.
type names []string

// check refuses a client whose certificate, which is of the CA, has no name that is
// allowed.
func (n names) check(ctx context.Context) error {
	if n == nil || slices.Contains(n, anyName) {
		return nil
	}
	client, _ := peer.FromContext(ctx)
	if client == nil {
		return fail(outcomeForbidden, codes.PermissionDenied, "no certificate is shown")
	}
	auth, ok := client.AuthInfo.(credentials.TLSInfo)
	if !ok || len(auth.State.PeerCertificates) == 0 {
		return fail(outcomeForbidden, codes.PermissionDenied, "no certificate is shown")
	}
	cert := auth.State.PeerCertificates[0]
	if n.allow(cert) {
		return nil
	}
	return fail(outcomeForbidden, codes.PermissionDenied,
		"the certificate for %.256q, of DNS names %.256q, is not one of --ondemand-allowed-names", cert.Subject.CommonName, cert.DNSNames)
}

// allow compares whole names: a wildcard in a client's certificate is no name.
func (n names) allow(cert *x509.Certificate) bool {
	return slices.ContainsFunc(n, func(name string) bool {
		return name == cert.Subject.CommonName ||
			slices.ContainsFunc(cert.DNSNames, func(dns string) bool { return strings.EqualFold(dns, name) })
	})
}
