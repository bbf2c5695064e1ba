// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// TestUsers follows a file of users on an etcd as etcdinit leaves it.
func TestUsers(t *testing.T) {
	west := mesh.NewCluster(t, "west", 2)
	west.EnableRoles(t)
	auth := west.Etcd.Client().Etcd()
	_, err := auth.RoleAdd(t.Context(), "auditor")
	require.NoError(t, err)
	// Left by an earlier process for a cluster that has gone meanwhile; and one that
	// somebody made.
	for name, role := range map[string]string{"remote-gone": "remote", "remote-audit": "auditor"} {
		_, err = auth.UserAddWithOptions(t.Context(), name, "", &clientv3.UserAddOptions{NoPassword: true})
		require.NoError(t, err)
		_, err = auth.UserGrantRole(t.Context(), name, role)
		require.NoError(t, err)
	}

	path := filepath.Join(t.TempDir(), "users.yaml")
	write := func(content string) {
		t.Helper()
		next := path + ".next"
		require.NoError(t, os.WriteFile(next, []byte(content), 0o600))
		require.NoError(t, os.Rename(next, path))
	}
	own := map[string][]string{
		"root": {"root"}, "admin-west": {"root"}, "local-west": {"local"}, "remote": {"remote"}, "remote-audit": {"auditor"},
	}
	become := func(remotes map[string][]string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			users, err := auth.UserList(t.Context())
			require.NoError(c, err)
			has := map[string][]string{}
			for _, name := range users.Users {
				user, err := auth.UserGet(t.Context(), name)
				require.NoError(c, err)
				has[name] = user.Roles
			}
			want := map[string][]string{}
			for _, some := range []map[string][]string{own, remotes} {
				for name, roles := range some {
					want[name] = roles
				}
			}
			require.Equal(c, want, has)
		}, patience, tick)
	}

	h := mesh.NewHive(t, mesh.Flags{
		"cluster-name": "west", "cluster-id": "2",
		"kvstore-opt":               etcd.OptConfig + "=" + west.Etcd.ConfigAs(t, mesh.UserRoot),
		"cluster-users-enabled":     "true",
		"cluster-users-config-path": path,
	}, cell.Module("test", "Test", cell.Config(wire.DefaultClusterInfo), etcd.ClientParts, usersCell))
	h.Start()

	// There is no file yet; then it has what can't be used beside what can.
	write("users:\n- {name: remote-north, role: remote}\n- {name: remote-east, role: remote}\n- {name: root, role: remote}\n- {name: remote-none}\n")
	become(map[string][]string{"remote-north": {"remote"}, "remote-east": {"remote"}})

	// Another role instead of the one before; one cluster leaves.
	write("users:\n- {name: remote-north, role: auditor}\n- {name: remote-south, role: remote}\n")
	become(map[string][]string{"remote-north": {"auditor"}, "remote-south": {"remote"}})

	// A role that there isn't holds up nobody else, and takes none away.
	write("users:\n- {name: remote-a, role: none}\n- {name: remote-south, role: none}\n- {name: remote-z, role: remote}\n")
	become(map[string][]string{"remote-a": nil, "remote-south": {"remote"}, "remote-z": {"remote"}})

	// Whoever's entry is at fault stays as he is; and if it doesn't say whose it is, all do.
	write("users:\n- {name: remote-south, roel: remote}\n- {name: remote-z, role: remote}\n- {name: remote-y, role: remote}\n")
	become(map[string][]string{"remote-south": {"remote"}, "remote-z": {"remote"}, "remote-y": {"remote"}})
	write("users:\n- {role: remote}\n- {name: remote-x, role: remote}\n")
	become(map[string][]string{"remote-south": {"remote"}, "remote-z": {"remote"}, "remote-y": {"remote"}, "remote-x": {"remote"}})

	// A file that can't be parsed changes nothing, and is no reason to end; nor does one
	// without a list.
	write("users: [")
	write("user:\n- {name: remote-z, role: remote}\n")
	write("users:\n- {name: remote-z, role: remote}\n")
	become(map[string][]string{"remote-z": {"remote"}})

	// What goes while nobody looks is gone after the next start.
	h.Stop()
	write("users:\n- {name: remote-y, role: remote}\n")
	h.Start()
	become(map[string][]string{"remote-y": {"remote"}})

	// The last one leaves: this is what the chart then has.
	write("users:\n")
	become(nil)
}
