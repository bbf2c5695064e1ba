// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	etcdinit "github.com/cilium/cilium/pkg/kvstore/etcdinit"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// Users of an etcd with upstream's roles. UserRoot may do everything, UserRemote read
// what the cluster says about itself, and a LocalUser what is cached of others.
const (
	UserRoot   = "root"
	UserRemote = "remote"
)

// LocalUser is the user of the cluster's own agents.
func LocalUser(cluster string) string { return "local-" + cluster }

// EnableRoles gives the cluster's etcd the users and roles that upstream's etcdinit
// does. From then on who isn't one of them is let do nothing; Client is UserRoot.
func (c *Cluster) EnableRoles(t testing.TB) {
	t.Helper()
	e := c.Etcd
	require.NoError(t, etcdinit.ClusterMeshEtcdInit(t.Context(), slog.New(slog.DiscardHandler),
		&clientv3.Client{Auth: withPasswords{e.client.Etcd()}}, c.Name))
	root, err := etcd.NewClient(Log(t), etcd.ClientConfig{ConfigPath: e.ConfigAs(t, UserRoot)})
	require.NoError(t, err)
	require.NoError(t, e.client.Close())
	e.client = root
}

// withPasswords gives users their name as a password: upstream's come with certificates,
// which these tests have no use for.
type withPasswords struct{ clientv3.Auth }

func (a withPasswords) UserAddWithOptions(ctx context.Context, name, _ string, _ *clientv3.UserAddOptions) (*clientv3.AuthUserAddResponse, error) {
	return a.UserAdd(ctx, name, name)
}

// ConfigAs writes the configuration of a client that is this user, and gives its path.
func (e *Etcd) ConfigAs(t testing.TB, user string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "etcd.config")
	require.NoError(t, os.WriteFile(path, e.configAs(user), 0o600))
	return path
}

func (e *Etcd) configAs(user string) []byte {
	return fmt.Appendf(nil, "endpoints:\n- %s\nusername: %s\npassword: %s\n", e.URL(), user, user)
}

// AddAs says that a cluster is to be read from this etcd as this user.
func (d *Directory) AddAs(cluster string, from *Etcd, user string) *Directory {
	d.t.Helper()
	require.NoError(d.t, os.WriteFile(filepath.Join(d.Path, cluster), from.configAs(user), 0o600))
	return d
}
