// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	expired = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate has expired or is not yet valid: current time 2026-11-22T05:41:18Z is after 2026-11-21T05:40:52Z"`
	expiredLater = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate has expired or is not yet valid: current time 2026-11-22T05:41:21Z is after 2026-11-21T05:40:52Z"`
	refused = `connection error: desc = "error reading server preface: remote error: tls: unknown certificate authority"`
	broken  = `write tcp 127.0.0.1:37920->127.0.0.1:42801: write: broken pipe`
	away    = `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:42801: connect: connection refused"`
)

func TestReasonOf(t *testing.T) {
	for text, want := range map[string]string{
		expired: "the certificate of its etcd isn't accepted (trusted-ca-file): " + expired,
		refused: "its etcd doesn't accept our certificate (cert-file, key-file): " + refused,
		broken:  broken,
		away:    away,
	} {
		err := errors.New(text)
		require.EqualError(t, reasonOf(err), want)
		require.ErrorIs(t, reasonOf(err), err)
	}
}

func TestSameReason(t *testing.T) {
	for _, test := range []struct {
		told, now string
		same      bool
	}{
		{away, away, true},
		{away, "no answer within 10s: " + away, true},
		{expired, expiredLater, true},
		{refused, broken, true},
		{broken, refused, false},
		{away, broken, false},
		{broken, away, false},
		{refused, away, false},
		{refused, expired, false},
	} {
		require.Equal(t, test.same, sameReason(reasonOf(errors.New(test.told)), reasonOf(errors.New(test.now))), "%s\n%s", test.told, test.now)
	}
}
