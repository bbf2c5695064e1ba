// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// TestValidateWithoutKubernetes: a program without a client of Kubernetes reads nothing of
// its own cluster unless it is told to, and never seems to.
func TestValidateWithoutKubernetes(t *testing.T) {
	cfg, address := cacheOnlyConfig(), etcd.Config{}.With(etcd.OptAddress, "http://127.0.0.1:1")
	require.NoError(t, cfg.validate(etcd.Config{}, "", true))
	require.ErrorContains(t, cfg.validate(address, "", true), "give --datastore=etcd")
	require.NoError(t, cfg.validate(address, "", false), "the address may be for another part of the program")

	cfg.Datastore = DatastoreKubernetes
	require.ErrorContains(t, cfg.validate(etcd.Config{}, "", true), "built without a client of Kubernetes")
	require.NoError(t, cfg.validate(etcd.Config{}, "", false))

	cfg.Datastore = DatastoreEtcd
	require.NoError(t, cfg.validate(address, "", true))
}
