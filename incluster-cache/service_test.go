// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/store"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var ownCluster = wire.ClusterInfo{Name: "default", MaxConnectedClusters: 255}

// backendsOf are the backends of a row of the table of services.
func backendsOf(port string, addresses []string) map[string]store.PortConfiguration {
	backends := map[string]store.PortConfiguration{}
	for _, address := range addresses {
		host, number, err := net.SplitHostPort(address)
		if err != nil {
			panic(err)
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			panic(err)
		}
		l4 := loadbalancer.NewL4Addr(loadbalancer.TCP, uint16(n))
		backends[host] = store.PortConfiguration{port: &l4}
	}
	return backends
}

func TestParseService(t *testing.T) {
	for endpoint, want := range map[string]service{
		"https://cache.kube-system.svc":                    {endpoint: "https://cache.kube-system.svc:2379", name: reading.ServiceName{Namespace: "kube-system", Name: "cache"}, port: 2379},
		"https://cache.kube-system.svc:2380":               {endpoint: "https://cache.kube-system.svc:2380", name: reading.ServiceName{Namespace: "kube-system", Name: "cache"}, port: 2380},
		"http://cache.kube-system.svc.cluster.local:2379/": {endpoint: "http://cache.kube-system.svc.cluster.local:2379/", name: reading.ServiceName{Namespace: "kube-system", Name: "cache"}, port: 2379},
	} {
		got, ok := parseService(endpoint)
		require.True(t, ok, endpoint)
		require.Equal(t, &want, got)
	}
	for _, endpoint := range []string{
		"http://127.0.0.1:2379", "https://[::1]:2379", "127.0.0.1:2379", "unix:///run/etcd.sock", "https://etcd.example.com:2379",
		"https://cache.kube-system:2379", "https://cache.kube-system.svc:0", "https://cache.kube-system.svc:x", "https://..svc", "",
	} {
		_, ok := parseService(endpoint)
		require.False(t, ok, endpoint)
	}
}

// answers is a reading.ServiceReader: what the API server has, or why it doesn't answer.
type answers struct {
	backends reading.ServiceBackends
	err      error
	asked    int
}

func (a *answers) Backends(context.Context, reading.ServiceName, uint16) (reading.ServiceBackends, error) {
	a.asked++
	return a.backends, a.err
}

func newDirectory(t *testing.T, dir string, reader reading.ServiceReader, cluster wire.ClusterInfo) *directory {
	d, _ := newDirectoryAndWriter(t, dir, reader, cluster)
	return d
}

func newDirectoryAndWriter(t *testing.T, dir string, reader reading.ServiceReader, cluster wire.ClusterInfo) (*directory, *state.Writer) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	return &directory{
		log: slog.New(slog.NewTextHandler(t.Output(), nil)), cluster: cluster, stateDir: dir, backoff: newAskBackoff(),
		etcd:   etcd.ClientConfig{Endpoints: []string{"https://cache.kube-system.svc:2379", "http://192.0.2.1:2379"}},
		reader: reader, db: db, services: writer.Tables().Services,
	}, writer
}

// TestBackendsOutliveTheProcess: what was read once is there at the next start, when
// the API server is away; unless the file is damaged, or of another cluster.
func TestBackendsOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	there := &answers{backends: reading.ServiceBackends{PortName: "etcd", Addresses: []string{"10.0.0.7:2379", "10.0.0.8:2379"}}}
	first := newDirectory(t, dir, there, ownCluster)
	require.NoError(t, first.open(t.Context()))
	want := []replica{
		{endpoint: "http://192.0.2.1:2379", address: "192.0.2.1:2379"},
		{endpoint: "https://cache.kube-system.svc:2379", address: "10.0.0.7:2379"},
		{endpoint: "https://cache.kube-system.svc:2379", address: "10.0.0.8:2379"},
	}
	require.Equal(t, want, first.replicas())
	require.NoError(t, first.open(t.Context()))
	require.Equal(t, 1, there.asked, "what is known isn't asked for")

	away := &answers{err: errors.New("the API server is away")}
	second := newDirectory(t, dir, away, ownCluster)
	require.NoError(t, second.open(t.Context()))
	require.Equal(t, want, second.replicas())
	require.Equal(t, "etcd", second.named[0].backends.PortName)

	path := filepath.Join(dir, backendsFile)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	for what, damage := range map[string]func(*directory, []byte) []byte{
		"torn":            func(_ *directory, b []byte) []byte { return b[:len(b)/2] },
		"empty":           func(*directory, []byte) []byte { return nil },
		"another version": func(*directory, []byte) []byte { return []byte(`{"version":2}`) },
		"another cluster": func(d *directory, b []byte) []byte { d.cluster.ID = 7; return b },
	} {
		t.Run(what, func(t *testing.T) {
			third := newDirectory(t, dir, away, ownCluster)
			require.NoError(t, os.WriteFile(path, damage(third, content), 0o600))
			require.ErrorIs(t, loadBackends(dir, third.cluster, nil), errDiscarded)
			require.NoError(t, third.open(t.Context()), "the other endpoint is left")
			require.Equal(t, want[:1], third.replicas())
		})
	}
}

// TestBackendsFollowTheCache: what the cache says of its own Service replaces what
// the API server said, without asking that; an empty answer replaces nothing.
func TestBackendsFollowTheCache(t *testing.T) {
	there := &answers{backends: reading.ServiceBackends{PortName: "etcd", Addresses: []string{"10.0.0.7:2379"}}}
	d, writer := newDirectoryAndWriter(t, t.TempDir(), there, ownCluster)
	require.NoError(t, d.open(t.Context()))
	d.follow()
	require.Len(t, d.replicas(), 2)

	s := &simulation{T: t, writer: writer, origin: writer.Origin("default", 0, state.SourceLocal)}
	s.publish([]string{"10.0.0.8:2379", "10.0.0.9:2380"})
	d.follow()
	require.Equal(t, []string{"10.0.0.8:2379", "10.0.0.9:2380"}, d.named[0].backends.Addresses)
	s.publish(nil)
	d.follow()
	require.Len(t, d.named[0].backends.Addresses, 2)
	require.Equal(t, 1, there.asked)

	next := newDirectory(t, d.stateDir, &answers{err: errors.New("away")}, ownCluster)
	require.NoError(t, next.open(t.Context()))
	require.Equal(t, d.replicas(), next.replicas())
}

// TestAskingIsPaced: while no backend answers, the API server isn't asked each time.
func TestAskingIsPaced(t *testing.T) {
	there := &answers{backends: reading.ServiceBackends{Addresses: []string{"10.0.0.7:2379"}}}
	d := newDirectory(t, t.TempDir(), there, ownCluster)
	d.backoff.Duration, d.backoff.Factor = 1<<60, 1
	d.backoff.Cap = 1 << 60
	require.NoError(t, d.open(t.Context()))
	for range 100 {
		require.NoError(t, d.failed(t.Context()))
	}
	require.Equal(t, 1, there.asked)
}
