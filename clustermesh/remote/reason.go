// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"fmt"
	"regexp"
	"strings"
)

// reasonOf is an error with which a connection failed, with who doesn't accept whose
// certificate if it is about that. gRPC makes texts of what TLS says, so that there is
// nothing else to go by.
func reasonOf(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "remote error: tls: ") && strings.Contains(text, "certificate"):
		return fmt.Errorf("its etcd doesn't accept our certificate (cert-file, key-file): %w", err)
	case strings.Contains(text, "x509: "):
		return fmt.Errorf("the certificate of its etcd isn't accepted (trusted-ca-file): %w", err)
	}
	return err
}

// changing is what differs between attempts: when TLS looked at a certificate, and whether
// this was the last one of a session.
var changing = regexp.MustCompile(`current time \S+ is |no answer within \S+: `)

// sameReason says whether an attempt failed for a reason that is told already. With
// TLS 1.3 an attempt whose certificate is refused ends with the reason or with a broken
// connection, whichever is noticed first; after the one the other is no news.
func sameReason(told, err error) bool {
	before := changing.ReplaceAllString(told.Error(), "")
	now := changing.ReplaceAllString(err.Error(), "")
	if now == before {
		return true
	}
	broken := strings.Contains(now, "broken pipe") || strings.Contains(now, "connection reset by peer")
	return broken && !strings.Contains(now, "tls: ") && strings.Contains(before, "remote error: tls: ")
}
