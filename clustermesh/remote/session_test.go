// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	healthtypes "github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestConfigAppears: without a cluster config there is nothing to follow, and
// it is followed as soon as there is a good one.
func TestConfigAppears(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	red := f.add("red", config(s.url()))
	row := f.problem("red", wire.ErrNoClusterConfig.Error())
	require.True(t, row.Connected)

	for _, test := range []struct{ value, problem string }{
		{`{"id":`, "decoding cluster configuration"},
		{`{}`, "cluster ID 0 is reserved"},
		{`{"id":1}`, "cluster ID 1 is our own"},
		{`{"id":256}`, "above --max-connected-clusters"},
	} {
		s.put(wire.ClusterConfigKey("red"), test.value)
		row := f.problem("red", test.problem)
		require.True(t, row.Connected)
		require.Equal(t, uint64(1), row.Failures, "it is one failure all along")
	}
	require.Empty(t, red.calls)

	s.publish("red", 2, wire.Capabilities{})
	red.expect(t, "run")
	require.Equal(t, uint32(2), f.healthy("red").ClusterID)
}

// TestDuplicateID: of two clusters with one ID the first is followed, and the
// second from when the first is gone.
func TestDuplicateID(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	s.publish("blue", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	blue := f.add("blue", config(s.url()))
	f.problem("blue", `cluster ID 2 is used by cluster "red"`)
	require.Empty(t, blue.calls)

	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")
	blue.expect(t, "run")
	f.healthy("blue")
}

func TestClusterConfigChanges(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	s.publish("blue", 3, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	blue := f.add("blue", config(s.url()))
	blue.expect(t, "run")

	// The layout.
	s.publish("red", 2, wire.Capabilities{Cached: true})
	red.expect(t, "ended")
	require.True(t, red.expect(t, "run").Config.Capabilities.Cached)
	f.row("red", "the cached layout", func(r *state.RemoteCluster) bool { return r.Cached })

	// A config that is gone, or can't be read, isn't another cluster.
	_, err := s.client.Etcd().Delete(t.Context(), wire.ClusterConfigKey("red"))
	require.NoError(t, err)
	f.problem("red", wire.ErrNoClusterConfig.Error())
	s.put(wire.ClusterConfigKey("red"), "}")
	f.problem("red", "decoding cluster configuration")
	s.publish("red", 2, wire.Capabilities{Cached: true})
	f.healthy("red")
	require.Empty(t, red.calls)

	// An ID that is taken.
	s.publish("red", 3, wire.Capabilities{Cached: true})
	red.expect(t, "ended")
	f.problem("red", `cluster ID 3 is used by cluster "blue"`)
	// Its own again: nothing is drained.
	s.publish("red", 2, wire.Capabilities{Cached: true})
	red.expect(t, "run")

	// Another ID, which frees the old one.
	s.publish("red", 4, wire.Capabilities{Cached: true})
	red.expect(t, "ended")
	red.expect(t, "reset")
	require.Equal(t, uint32(4), red.expect(t, "run").Config.ID)
	require.Equal(t, uint32(4), f.healthy("red").ClusterID)
	s.publish("green", 2, wire.Capabilities{})
	f.add("green", config(s.url())).expect(t, "run")
	require.Empty(t, blue.calls)
}

// TestOtherEtcd has another etcd come up at the address, with other content.
func TestOtherEtcd(t *testing.T) {
	for _, test := range []struct {
		name         string
		token        string // the same gives the same etcd cluster ID
		id           uint32
		capabilities wire.Capabilities
		calls        []string
	}{
		{name: "same config", id: 2},
		{name: "same config and etcd ID", token: "token", id: 2},
		{name: "other cluster ID", id: 5, calls: []string{"ended", "reset", "run"}},
		{name: "other cluster ID and same etcd ID", token: "token", id: 5, calls: []string{"ended", "reset", "run"}},
		{name: "other layout", id: 2, capabilities: wire.Capabilities{Cached: true}, calls: []string{"ended", "run"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			s := f.startSource(etcd.ServerConfig{Token: test.token})
			s.publish("red", 2, wire.Capabilities{})
			address := s.url()
			red := f.add("red", config(address))
			red.expect(t, "run")
			before := f.healthy("red")

			f.lose(s, "red")
			s = f.startSource(etcd.ServerConfig{Token: test.token, ListenURL: address})
			// For a while it is empty, which tells nothing about the cluster.
			f.problem("red", wire.ErrNoClusterConfig.Error())
			s.publish("red", test.id, test.capabilities)
			for _, method := range test.calls {
				red.expect(t, method)
			}
			after := f.healthy("red")
			require.Equal(t, test.token != "", before.EtcdID == after.EtcdID)
			require.Equal(t, test.id, after.ClusterID)
			require.Empty(t, red.calls)
		})
	}
}

// TestHeartbeatLost: a source that is silent is connected to anew.
func TestHeartbeatLost(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	first := red.expect(t, "run")
	f.healthy("red")
	f.clock.Step(heartbeatLimit)
	red.expect(t, "ended")
	f.problem("red", errNoHeartbeat.Error())
	second := red.expect(t, "run")
	require.NotSame(t, first.Client, second.Client)
	require.Equal(t, uint64(1), f.healthy("red").Failures)
}

// TestCacheTTL: what is known is revoked once for each absence.
func TestCacheTTL(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	address := s.url()
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(address))
	red.expect(t, "run")

	away := func() { f.lose(s, "red") }
	back := func() {
		s = f.startSource(etcd.ServerConfig{ListenURL: address})
		s.publish("red", 2, wire.Capabilities{})
	}
	away()
	f.clock.Step(cacheTTL)
	red.expect(t, "ended")
	red.expect(t, "revoke")
	f.clock.Step(cacheTTL)
	back()
	red.expect(t, "run") // and no second revocation before it
	f.healthy("red")

	// Back in time: nothing is revoked, and the time starts over.
	away()
	f.clock.Step(cacheTTL - time.Second)
	back()
	f.healthy("red")
	f.clock.Step(time.Second)
	away()
	f.clock.Step(cacheTTL - time.Second)
	require.Empty(t, red.calls)
	f.clock.Step(time.Second)
	red.expect(t, "ended")
	red.expect(t, "revoke")
	f.removeFile("red")
	red.expect(t, "remove")
}

// TestWrongCA: the error names the cause, and the right authority heals it,
// without a change to the configuration itself.
func TestWrongCA(t *testing.T) {
	f := newFixture(t)
	right, wrong := newAuthority(t, "right"), newAuthority(t, "wrong")
	right.issue("server")
	right.issue("client")
	s := f.startSource(etcd.ServerConfig{
		ListenURL: "https://127.0.0.1:0",
		CertFile:  right.path("server.crt"), KeyFile: right.path("server.key"), TrustedCAFile: right.path("ca.crt"),
	})
	write(t, right.config(s.url(), "client"), right.path("config"))
	var err error
	s.client, err = etcd.NewClient(hivetest.Logger(t), etcd.ClientConfig{ConfigPath: right.path("config")})
	require.NoError(t, err)
	s.publish("red", 2, wire.Capabilities{})

	wrong.issue("client")
	red := f.add("red", wrong.config(s.url(), "client"))
	row := f.problem("red", "certificate signed by unknown authority")
	require.False(t, row.Connected)

	// The authority as well as the key pair are read from the same files anew.
	for _, name := range []string{"ca.crt", "client.crt", "client.key"} {
		content, err := os.ReadFile(right.path(name))
		require.NoError(t, err)
		write(t, string(content), wrong.path(name))
	}
	red.expect(t, "run")
	f.healthy("red")
}

// TestWrongCertificates: whichever side's certificate is wrong, the row and the health of
// that cluster, and of no other, say whose it is, why, and what is to be looked at.
func TestWrongCertificates(t *testing.T) {
	f := newFixture(t)
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	start := func(a *authority, name string, options ...func(*x509.Certificate)) *source {
		a.issue(name, options...)
		return f.startSource(etcd.ServerConfig{ListenURL: "https://127.0.0.1:0",
			CertFile: a.path(name + ".crt"), KeyFile: a.path(name + ".key"), TrustedCAFile: ours.path("ca.crt")})
	}
	good := start(ours, "good")
	ours.issue("home")
	ours.issue("old", expired)
	theirs.issue("home")

	const itsIsWrong, oursIsWrong = "the certificate of its etcd isn't accepted", "its etcd doesn't accept our certificate (cert-file, key-file): "
	for name, test := range map[string]struct{ config, who, why string }{
		"expired":       {ours.config(start(ours, "expired", expired).url(), "home"), itsIsWrong + ": ", "certificate has expired"},
		"other-ca":      {ours.config(start(theirs, "other").url(), "home"), itsIsWrong + " (trusted-ca-file): ", "signed by unknown authority"},
		"elsewhere":     {ours.config(start(ours, "elsewhere", elsewhere).url(), "home"), "the certificate of its etcd is for another name (endpoints): ", "127.0.0.1"},
		"we-are-old":    {ours.config(good.url(), "old"), oursIsWrong, "expired certificate"},
		"we-are-others": {strings.ReplaceAll(ours.config(good.url(), "home"), ours.path("home"), theirs.path("home")), oursIsWrong, "unknown certificate authority"},
		"we-are-nobody": {config(good.url()) + "trusted-ca-file: " + ours.path("ca.crt") + "\n", oursIsWrong, "certificate required"},
	} {
		f.add(name, test.config)
		row := f.row(name, test.why, func(row *state.RemoteCluster) bool {
			return strings.HasPrefix(row.LastError, test.who) && strings.Contains(row.LastError, test.why)
		})
		require.False(t, row.Connected)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			reports := f.healthOf(name)
			require.Len(c, reports, 1)
			require.Equal(c, healthtypes.Level(cell.StatusDegraded), reports[0].Level)
			require.Contains(c, reports[0].Error, test.who)
		}, waitLimit, 10*time.Millisecond)
	}

	red := f.add("red", ours.config(good.url(), "home"))
	f.problem("red", "cluster configuration not found")
	require.Empty(t, red.calls)
}

// TestRemoteRole: the permissions that upstream gives the role for remote
// clusters are enough.
func TestRemoteRole(t *testing.T) {
	f := newFixture(t)
	ca := newAuthority(t, "ca")
	for _, name := range []string{"server", "root", "remote"} {
		ca.issue(name)
	}
	s := f.startSource(etcd.ServerConfig{
		ListenURL: "https://127.0.0.1:0",
		CertFile:  ca.path("server.crt"), KeyFile: ca.path("server.key"), TrustedCAFile: ca.path("ca.crt"),
	})
	write(t, ca.config(s.url(), "root"), ca.path("config"))
	var err error
	s.client, err = etcd.NewClient(hivetest.Logger(t), etcd.ClientConfig{ConfigPath: ca.path("config")})
	require.NoError(t, err)
	s.publish("red", 2, wire.Capabilities{})
	admin := s.client.Etcd()
	for _, name := range []string{"root", "remote"} {
		_, err := admin.RoleAdd(t.Context(), name)
		require.NoError(t, err)
		_, err = admin.UserAddWithOptions(t.Context(), name, "", &clientv3.UserAddOptions{NoPassword: true})
		require.NoError(t, err)
		_, err = admin.UserGrantRole(t.Context(), name, name)
		require.NoError(t, err)
	}
	for _, prefix := range []string{wire.HeartbeatKey, wire.StateRoot, wire.ClusterConfigKey("red"), wire.SyncedPrefix("red")} {
		_, err := admin.RoleGrantPermission(t.Context(), "remote", prefix, clientv3.GetPrefixRangeEnd(prefix),
			clientv3.PermissionType(clientv3.PermRead))
		require.NoError(t, err)
	}
	_, err = admin.AuthEnable(t.Context())
	require.NoError(t, err)

	red := f.add("red", ca.config(s.url(), "remote"))
	red.expect(t, "run")
	require.Zero(t, f.healthy("red").Failures)

	blue := f.add("blue", ca.config(s.url(), "remote"))
	f.problem("blue", "permission denied")
	require.Empty(t, blue.calls)
}
