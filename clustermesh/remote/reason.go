// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"fmt"
	"regexp"
	"strings"
)

// reasonOf is an error with which a connection failed, with who doesn't accept whose
// certificate, and which setting that is about. gRPC makes texts of what TLS says, so that
// there is nothing else to go by.
func reasonOf(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "remote error: tls: ") && strings.Contains(text, "certificate"):
		return fmt.Errorf("its etcd doesn't accept our certificate (cert-file, key-file): %w", err)
	case strings.Contains(text, "x509: certificate signed by unknown authority"):
		return fmt.Errorf("the certificate of its etcd isn't accepted (trusted-ca-file): %w", err)
	case wrongName.MatchString(text):
		return fmt.Errorf("the certificate of its etcd is for another name (endpoints): %w", err)
	case strings.Contains(text, "x509: "):
		return fmt.Errorf("the certificate of its etcd isn't accepted: %w", err)
	case hangs(text):
		return fmt.Errorf("its etcd takes connections, and doesn't answer: %w", err)
	}
	return err
}

// wrongName is what crypto/x509 says of a certificate that isn't for whom was dialled.
var wrongName = regexp.MustCompile(`x509: (certificate is (not )?valid for |cannot validate certificate for )`)

// hangs says whether a connection was made, and closed again since nothing came over it
// for as long as it may take.
func hangs(text string) bool {
	return strings.Contains(text, "error reading server preface: ") && strings.Contains(text, "use of closed network connection")
}

// changing is what differs between attempts: when TLS looked at a certificate, by which
// port it went out, and whether this was the last one of a session.
var changing = regexp.MustCompile(`current time \S+ is |no answer within \S+: |(read|write) tcp \S+->`)

// sameReason says whether an attempt failed for a reason that is told already. With
// TLS 1.3 an attempt whose certificate is refused ends with the reason or with a broken
// connection, whichever is noticed first; after the one the other is no news.
func sameReason(told, err error) bool {
	before := changing.ReplaceAllString(told.Error(), "")
	now := changing.ReplaceAllString(err.Error(), "")
	if now == before {
		return true
	}
	if strings.Contains(now, "while waiting for connections to become ready") && hangs(before) {
		return true // the next attempt was under way
	}
	broken := strings.Contains(now, "broken pipe") || strings.Contains(now, "connection reset by peer")
	return broken && !strings.Contains(now, "tls: ") && strings.Contains(before, "remote error: tls: ")
}
