// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/hive"
	healthtypes "github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cacheTTL = time.Minute

// call is one call of a Handler's method, when it starts; for Run there is
// "run" and, when it ended, "ended".
type call struct {
	method string
	conn   Connection
}

// recorder is a Handler that tells what it is told.
type recorder struct {
	calls chan call
	fail  chan error    // makes Run return
	hold  chan struct{} // if set, Remove waits for it
}

func (r *recorder) Run(ctx context.Context, conn Connection) error {
	r.calls <- call{"run", conn}
	defer func() { r.calls <- call{method: "ended"} }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-r.fail:
		return err
	}
}

func (r *recorder) Revoke(context.Context) { r.calls <- call{method: "revoke"} }
func (r *recorder) Reset(context.Context)  { r.calls <- call{method: "reset"} }

func (r *recorder) Remove(ctx context.Context) {
	r.calls <- call{method: "remove"}
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-ctx.Done():
		}
	}
}

// expect waits for the next call, which must be this one.
func (r *recorder) expect(t *testing.T, method string) Connection {
	t.Helper()
	select {
	case call := <-r.calls:
		require.Equal(t, method, call.method)
		return call.conn
	case <-time.After(waitLimit):
		t.Fatalf("no call of %s", method)
		return Connection{}
	}
}

// network is the Dialer of a fixture, which can be cut.
type network struct {
	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case n.isCut:
		return nil, errors.Join(errors.New("the network is cut"), conn.Close())
	}
	n.conns = append(n.conns, conn)
	return conn, nil
}

// made is the number of connections since the last cut.
func (n *network) made() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isCut = true
	for _, conn := range n.conns {
		_ = conn.Close() // may have been closed by its user
	}
	n.conns = nil
}

func (n *network) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isCut = false
}

// fixture is a hive with the cell, of the cluster "home", ID 1.
type fixture struct {
	t        *testing.T
	dir      string
	clock    *clocktesting.FakeClock
	network  network
	db       *statedb.DB
	rows     statedb.Table[*state.RemoteCluster]
	health   statedb.Table[healthtypes.Status]
	mesh     *Mesh
	made     chan *recorder // by the Factory, in order
	holdNext chan struct{}
	stop     func()
}

// newFixture starts the hive on an empty directory.
func newFixture(t *testing.T, more ...cell.Cell) *fixture {
	f := &fixture{
		t:     t,
		dir:   t.TempDir(),
		clock: clocktesting.NewFakeClock(time.Now()),
		made:  make(chan *recorder, 10),
	}
	h := hive.New(
		state.Cell,
		Cell,
		cell.Group(more...),
		cell.Provide(
			func() wire.ClusterInfo { return wire.ClusterInfo{Name: "home", ID: 1, MaxConnectedClusters: 255} },
			func() etcd.Config { return etcd.DefaultConfig },
			func() clock.WithDelayedExecution { return f.clock },
			func() Factory { return f.newHandler },
			func() Dialer { return f.network.dial },
		),
		cell.Invoke(func(db *statedb.DB, rows statedb.Table[*state.RemoteCluster], health statedb.Table[healthtypes.Status], mesh *Mesh) {
			f.db, f.rows, f.health, f.mesh = db, rows, health, mesh
			mesh.cfg.connectLimit = time.Second
		}),
	)
	h.Viper().Set("clustermesh-config", f.dir)
	h.Viper().Set("clustermesh-cache-ttl", cacheTTL)
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
	require.NoError(t, h.Start(log, context.Background()))
	f.stop = sync.OnceFunc(func() { require.NoError(t, h.Stop(log, context.Background())) })
	t.Cleanup(f.stop)
	select {
	case <-f.mesh.Listed():
	case <-time.After(waitLimit):
		t.Fatal("the directory was not listed")
	}
	return f
}

// startSource starts an etcd that the fixture's clusters may connect to.
func (f *fixture) startSource(cfg etcd.ServerConfig) *source {
	f.t.Helper()
	f.network.mend()
	s := startSource(f.t, cfg)
	// An etcd that is closed waits for its clients.
	f.t.Cleanup(f.network.cut)
	return s
}

// lose ends a source and all connections, and waits until that is seen.
func (f *fixture) lose(s *source, cluster string) {
	f.t.Helper()
	f.network.cut()
	s.close()
	f.row(cluster, "the loss of the connection", func(r *state.RemoteCluster) bool {
		return !r.Connected && r.LastError != "" && r.Failures > 0
	})
}

func (f *fixture) newHandler(string) Handler {
	r := &recorder{calls: make(chan call, 100), fail: make(chan error), hold: f.holdNext}
	f.made <- r
	return r
}

// add writes a configuration and gives the Handler that is made for it.
func (f *fixture) add(cluster, content string) *recorder {
	f.t.Helper()
	write(f.t, content, f.dir, cluster)
	return f.handler()
}

func (f *fixture) handler() *recorder {
	f.t.Helper()
	select {
	case r := <-f.made:
		return r
	case <-time.After(waitLimit):
		f.t.Fatal("no Handler was made")
		return nil
	}
}

func (f *fixture) removeFile(cluster string) {
	f.t.Helper()
	require.NoError(f.t, os.Remove(filepath.Join(f.dir, cluster)))
}

// row waits until the cluster's row is as it should be.
func (f *fixture) row(cluster, what string, ok func(*state.RemoteCluster) bool) *state.RemoteCluster {
	f.t.Helper()
	timeout := time.After(waitLimit)
	for {
		row, _, watch, found := f.rows.GetWatch(f.db.ReadTxn(), state.RemoteClusterByName(cluster))
		if found && ok(row) {
			return row
		}
		select {
		case <-watch:
		case <-timeout:
			f.t.Fatalf("waited for %s: %+v", what, row)
		}
	}
}

// problem waits until the row's LastError contains text.
func (f *fixture) problem(cluster, text string) *state.RemoteCluster {
	f.t.Helper()
	return f.row(cluster, "error "+text, func(row *state.RemoteCluster) bool {
		return strings.Contains(row.LastError, text)
	})
}

// healthy waits until the row tells no error of a connected cluster.
func (f *fixture) healthy(cluster string) *state.RemoteCluster {
	f.t.Helper()
	return f.row(cluster, "no error", func(row *state.RemoteCluster) bool {
		return row.Connected && row.LastError == ""
	})
}

// healthOf gives the health reports of a cluster's job.
func (f *fixture) healthOf(cluster string) (reports []healthtypes.Status) {
	for status := range f.health.All(f.db.ReadTxn()) {
		if strings.Contains(status.ID.String(), "remote-"+cluster+"_etcd") {
			reports = append(reports, status)
		}
	}
	return reports
}

// source is an etcd as a remote cluster has it.
type source struct {
	t      *testing.T
	server *etcd.Server
	client *etcd.Client
}

func startSource(t *testing.T, cfg etcd.ServerConfig) *source {
	t.Helper()
	if cfg.ListenURL == "" {
		cfg.ListenURL = "http://127.0.0.1:0"
	}
	cfg.Dir = t.TempDir()
	server, err := etcd.StartServer(t.Context(), cfg)
	require.NoError(t, err)
	s := &source{t: t, server: server}
	t.Cleanup(s.close)
	if cfg.CertFile == "" {
		s.client, err = etcd.NewClient(hivetest.Logger(t), etcd.ClientConfig{Endpoints: []string{server.URL()}})
		require.NoError(t, err)
	}
	return s
}

func (s *source) close() {
	if s.client != nil {
		require.NoError(s.t, s.client.Close())
		s.client = nil
	}
	if s.server != nil {
		s.server.Close()
		s.server = nil
	}
}

func (s *source) url() string { return s.server.URL() }

func (s *source) put(key, value string) {
	s.t.Helper()
	_, err := s.client.Etcd().Put(s.t.Context(), key, value)
	require.NoError(s.t, err)
}

// publish writes a cluster config.
func (s *source) publish(cluster string, id uint32, capabilities cmtypes.CiliumClusterConfigCapabilities) {
	s.t.Helper()
	value, err := wire.MarshalClusterConfig(wire.ClusterConfig{ID: id, Capabilities: capabilities})
	require.NoError(s.t, err)
	s.put(wire.ClusterConfigKey(cluster), string(value))
}

// authority is a certificate authority with its files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.cert, a.key = a.sign("ca", template, nil, nil)
	return a
}

// issue makes a certificate for 127.0.0.1 and for that client's name, which options change.
func (a *authority) issue(name string, options ...func(*x509.Certificate)) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, option := range options {
		option(template)
	}
	a.sign(name, template, a.cert, a.key)
}

// expired makes a certificate one whose time is over.
func expired(cert *x509.Certificate) { cert.NotAfter = time.Now().Add(-time.Minute) }

// elsewhere makes a certificate one for another host.
func elsewhere(cert *x509.Certificate) {
	cert.IPAddresses, cert.DNSNames = nil, []string{"elsewhere.mesh.cilium.io"}
}

func (a *authority) sign(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	if parent == nil {
		parent, signer = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	write(a.t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), a.path(name+".crt"))
	write(a.t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), a.path(name+".key"))
	return cert, key
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// config is an etcd configuration with a client's certificate of this authority.
func (a *authority) config(endpoint, client string) string {
	return config(endpoint) + fmt.Sprintf("trusted-ca-file: %s\ncert-file: %s\nkey-file: %s\n",
		a.path("ca.crt"), a.path(client+".crt"), a.path(client+".key"))
}
