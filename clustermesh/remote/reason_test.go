// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	tooOld = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate has expired or is not yet valid: current time 2026-11-22T05:41:18Z is after 2026-11-21T05:40:52Z"`
	tooOldLater = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate has expired or is not yet valid: current time 2026-11-22T05:41:21Z is after 2026-11-21T05:40:52Z"`
	refused  = `connection error: desc = "error reading server preface: remote error: tls: unknown certificate authority"`
	broken   = `write tcp 127.0.0.1:37920->127.0.0.1:42801: write: broken pipe`
	unsigned = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate signed by unknown authority"`
	name = `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: ` +
		`x509: certificate is valid for red.mesh.cilium.io, not blue.mesh.cilium.io"`
	hung      = `connection error: desc = "error reading server preface: read tcp 127.0.0.1:37920->127.0.0.1:42801: use of closed network connection"`
	hungLater = `connection error: desc = "error reading server preface: read tcp 127.0.0.1:51234->127.0.0.1:42801: use of closed network connection"`
	waiting   = `context deadline exceeded while waiting for connections to become ready`
	away      = `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:42801: connect: connection refused"`
)

func TestReasonOf(t *testing.T) {
	for text, want := range map[string]string{
		tooOld:   "the certificate of its etcd isn't accepted: " + tooOld,
		unsigned: "the certificate of its etcd isn't accepted (trusted-ca-file): " + unsigned,
		name:     "the certificate of its etcd is for another name (endpoints): " + name,
		hung:     "its etcd takes connections, and doesn't answer: " + hung,
		refused:  "its etcd doesn't accept our certificate (cert-file, key-file): " + refused,
		broken:   broken,
		away:     away,
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
		{tooOld, tooOldLater, true},
		{refused, broken, true},
		{broken, refused, false},
		{away, broken, false},
		{broken, away, false},
		{refused, away, false},
		{refused, tooOld, false},
		{hung, hungLater, true},
		{hung, waiting, true},
		{away, waiting, false},
		{waiting, hung, false},
	} {
		require.Equal(t, test.same, sameReason(reasonOf(errors.New(test.told)), reasonOf(errors.New(test.now))), "%s\n%s", test.told, test.now)
	}
}
