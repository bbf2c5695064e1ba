// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const dbValue = `{"IP":"10.1.0.11","HostIP":"172.18.0.2","ID":65547,"K8sNamespace":"shop","K8sPodName":"db"}`

// sources are a KVStoreMesh and the etcds that it is connected to: north's own, and of
// south a copy.
type sources struct {
	north, south *mesh.Etcd
	mesh         *mesh.KVStoreMesh
	address      string
}

// newSources starts them, with what north has written by hand. The flags say where it
// is served, which is on a socket unless they do.
func newSources(t testing.TB, flags mesh.Flags) *sources {
	s := &sources{north: mesh.StartEtcd(t), south: mesh.StartEtcd(t), address: "unix://" + filepath.Join(t.TempDir(), "s")}
	put(t, s.north, wire.ClusterConfigKey("north"), `{"id":1,"capabilities":{"maxConnectedClusters":255}}`)
	put(t, s.north, wire.OnDemandEndpointPrefix+dbAddr, dbValue)
	put(t, s.north, wire.OnDemandIdentityPrefix+"65547", "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=north;")
	put(t, s.south, wire.ClusterConfigKey("south"), `{"id":3,"capabilities":{"cached":true,"maxConnectedClusters":255}}`)
	remotes := mesh.NewDirectory(t).Add("north", s.north).Add("south", s.south)
	west := mesh.NewCluster(t, "west", 2)
	s.mesh = west.NewKVStoreMesh(t, remotes, mesh.Flags{"ondemand-listen-address": s.address}, flags)
	s.mesh.Start()
	if address := flags["ondemand-listen-address"]; address != "" {
		s.address = address
	}
	return s
}

func put(t testing.TB, at *mesh.Etcd, key, value string) {
	t.Helper()
	_, err := at.Client().Etcd().Put(t.Context(), key, value)
	require.NoError(t, err)
}

// overSockets writes the configuration of a client. Of a socket etcd's clients expect TLS
// unless they are told otherwise.
func overSockets(t testing.TB, addresses ...string) string {
	return writeConfig(t, "endpoints: [\""+strings.Join(addresses, "\", \"")+"\"]\ninsecure-transport: true\n")
}

// client is etcd's own, as a program may have it.
func (s *sources) client(t testing.TB) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.address}, DialTimeout: patience, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func endpointKey(cluster, addr string) string {
	return wire.EndpointLookup(cluster, netip.MustParseAddr(addr)).ReadThroughKey()
}

// awaitConnected waits until the cluster can be looked up in.
func awaitConnected(t testing.TB, client *clientv3.Client, cluster string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := client.Get(t.Context(), endpointKey(cluster, dbAddr))
		return etcd.CodeOf(err) != codes.Unavailable
	}, patience, tick)
}

// TestAnswered: a key is answered as etcd would if it had it, with what a request may
// ask for of it.
func TestAnswered(t *testing.T) {
	client := newSources(t, nil).client(t)
	awaitConnected(t, client, "north")
	key := endpointKey("north", dbAddr)
	get := func(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
		t.Helper()
		resp, err := client.Get(t.Context(), key, opts...)
		require.NoError(t, err)
		return resp
	}
	resp := get(key)
	require.EqualValues(t, 1, resp.Count)
	require.Equal(t, key, string(resp.Kvs[0].Key))
	require.JSONEq(t, dbValue, string(resp.Kvs[0].Value))
	require.NotZero(t, resp.Kvs[0].ModRevision)
	require.GreaterOrEqual(t, resp.Header.Revision, resp.Kvs[0].ModRevision)

	resp = get(key, clientv3.WithKeysOnly())
	require.Equal(t, key, string(resp.Kvs[0].Key))
	require.Empty(t, resp.Kvs[0].Value)
	resp = get(key, clientv3.WithCountOnly())
	require.EqualValues(t, 1, resp.Count)
	require.Empty(t, resp.Kvs)
	require.Len(t, get(key, clientv3.WithSerializable(), clientv3.WithLimit(1)).Kvs, 1)

	nothing := get(endpointKey("north", "10.1.0.99"))
	require.Empty(t, nothing.Kvs)
	require.Zero(t, nothing.Count)
	require.NotZero(t, nothing.Header.Revision)
	require.Empty(t, get("health").Kvs) // what etcdctl's "endpoint health" asks for

	status, err := client.Status(t.Context(), client.Endpoints()[0])
	require.NoError(t, err)
	require.NotEmpty(t, status.Version)
	require.Positive(t, status.DbSize)
	alarms, err := client.AlarmList(t.Context())
	require.NoError(t, err)
	require.Empty(t, alarms.Alarms)
}

// TestRefused: everything else is refused, by a code and by name.
func TestRefused(t *testing.T) {
	s := newSources(t, nil)
	client := s.client(t)
	awaitConnected(t, client, "north")
	awaitConnected(t, client, "south")
	key := endpointKey("north", dbAddr)
	get := func(key string, opts ...clientv3.OpOption) func(context.Context) error {
		return func(ctx context.Context) error { _, err := client.Get(ctx, key, opts...); return err }
	}
	for name, test := range map[string]struct {
		ask  func(context.Context) error
		code codes.Code
		text string
	}{
		"prefix":           {get(key, clientv3.WithPrefix()), codes.InvalidArgument, "only single keys are looked up"},
		"everything":       {get("", clientv3.WithFromKey()), codes.InvalidArgument, "only single keys are looked up"},
		"no key":           {get(""), codes.InvalidArgument, "key is not provided"},
		"past":             {get(key, clientv3.WithRev(1)), codes.OutOfRange, "compacted"},
		"by revision":      {get(key, clientv3.WithMinModRev(1)), codes.InvalidArgument, "can't be asked for by revision"},
		"not a look-up":    {get(wire.OnDemandEndpointPrefix + dbAddr), codes.NotFound, `no remote cluster "default"`},
		"the state":        {get("cilium/state/ip/v1/default/" + dbAddr), codes.InvalidArgument, "cilium/state/ip/v1/default/" + dbAddr},
		"a network":        {get("cilium/state/ondemand/ip/v1/north/10.1.0.0/24"), codes.InvalidArgument, "not a single address"},
		"foreign identity": {get(wire.IdentityLookup("north", 1<<18).ReadThroughKey()), codes.InvalidArgument, "outside 65536..131071"},
		"unknown cluster":  {get(endpointKey("nobody", dbAddr)), codes.NotFound, `no remote cluster "nobody"`},
		"a copy":           {get(endpointKey("south", dbAddr)), codes.FailedPrecondition, `"south" is read from a cache`},
		"put":              {func(ctx context.Context) error { _, err := client.Put(ctx, key, "x"); return err }, codes.Unimplemented, "KV/Put isn't answered"},
		"delete":           {func(ctx context.Context) error { _, err := client.Delete(ctx, key); return err }, codes.Unimplemented, "KV/DeleteRange isn't answered"},
		"transaction": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).Then(clientv3.OpGet(key), clientv3.OpPut(key, "x")).Commit()
			return err
		}, codes.Unimplemented, "only looks up single keys"},
		"condition": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 1)).Then(clientv3.OpGet(key)).Commit()
			return err
		}, codes.Unimplemented, "only looks up single keys"},
		"else": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).Then(clientv3.OpGet(key)).Else(clientv3.OpGet(key)).Commit()
			return err
		}, codes.Unimplemented, "only looks up single keys"},
		"nothing": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).Commit()
			return err
		}, codes.Unimplemented, "only looks up single keys"},
		"prefix among keys": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).Then(clientv3.OpGet(key), clientv3.OpGet(key, clientv3.WithPrefix())).Commit()
			return err
		}, codes.InvalidArgument, "only single keys are looked up"},
		"too many keys": {func(ctx context.Context) error {
			_, err := client.Txn(ctx).Then(slices.Repeat([]clientv3.Op{clientv3.OpGet(key)}, 129)...).Commit()
			return err
		}, codes.InvalidArgument, "too many operations"},
		"compaction": {func(ctx context.Context) error { _, err := client.Compact(ctx, 1); return err }, codes.Unimplemented, "KV/Compact isn't answered"},
		"lease":      {func(ctx context.Context) error { _, err := client.Grant(ctx, 5); return err }, codes.Unimplemented, "Lease/LeaseGrant isn't answered"},
		"members":    {func(ctx context.Context) error { _, err := client.MemberList(ctx); return err }, codes.Unimplemented, "Cluster/MemberList isn't answered"},
		"users":      {func(ctx context.Context) error { _, err := client.UserList(ctx); return err }, codes.Unimplemented, "Auth/UserList isn't answered"},
		"alarms": {func(ctx context.Context) error {
			_, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: 1, Alarm: 1})
			return err
		}, codes.Unimplemented, "Maintenance/Alarm isn't answered"},
		"hash": {func(ctx context.Context) error { _, err := client.HashKV(ctx, s.address, 0); return err }, codes.Unimplemented, "Maintenance/HashKV isn't answered"},
		"watch": {func(ctx context.Context) error {
			for resp := range client.Watch(ctx, key) {
				return resp.Err()
			}
			return nil
		}, codes.Unimplemented, "Watch/Watch isn't answered"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := test.ask(ctx)
			require.Equal(t, test.code, etcd.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, test.text)
		})
	}
	// A client with a password goes on without it.
	user, err := clientv3.New(clientv3.Config{Endpoints: []string{s.address}, Username: "remote", Password: "x", DialTimeout: patience, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer user.Close()
	resp, err := user.Get(t.Context(), key)
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
}

// TestRemoteAway: while a cluster is away agents are told so, soon, and it is found again
// when it is back.
func TestRemoteAway(t *testing.T) {
	s := newSources(t, mesh.Flags{"ondemand-cache-ttl": "0s"})
	path := overSockets(t, s.address)
	through := readThrough(t, path)
	eventually(t, through, question(dbAddr, 0), dbAnswer)
	s.north.Stop()
	for range 100 {
		_, err := resolve(t.Context(), through, question(dbAddr, 0))
		require.ErrorIs(t, err, ondemand.ErrUnavailable)
		require.ErrorContains(t, err, `remote cluster "north"`)
	}
	s.north.Start()
	eventually(t, through, question(dbAddr, 0), dbAnswer)

	south := question(dbAddr, 0)
	south.Cluster = "south"
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := resolve(t.Context(), through, south)
		require.ErrorIs(c, err, ondemand.ErrRefused)
	}, patience, tick)

	s.mesh.Stop()
	_, err := resolve(t.Context(), through, question(dbAddr, 0))
	require.ErrorIs(t, err, ondemand.ErrUnavailable)
	s.mesh.Start()
	eventually(t, through, question(dbAddr, 0), dbAnswer)
}

// TestReplicas: one KVStoreMesh that can't look a cluster up doesn't keep the other from
// being asked.
func TestReplicas(t *testing.T) {
	able, unable := newSources(t, nil), newSources(t, nil)
	awaitConnected(t, able.client(t), "north")
	awaitConnected(t, unable.client(t), "north")
	unable.north.Stop()
	path := overSockets(t, able.address, unable.address)
	through := readThrough(t, path)
	eventually(t, through, question(dbAddr, 0), dbAnswer)
}

// TestHostileValues: what can't be decoded is refused by name, and nothing else.
func TestHostileValues(t *testing.T) {
	s := newSources(t, mesh.Flags{"ondemand-cache-ttl": "0s"})
	through := readThrough(t, overSockets(t, s.address))
	eventually(t, through, question(dbAddr, 0), dbAnswer)
	for value, text := range map[string]string{
		"":                          "malformed",
		"{":                         "malformed",
		`{"IP":"10.1.0.12"}`:        "key-mismatch",
		`{"IP":"10.1.0.11","ID":x}`: "malformed",
	} {
		put(t, s.north, wire.OnDemandEndpointPrefix+dbAddr, value)
		_, err := resolve(t.Context(), through, question(dbAddr, 0))
		require.ErrorIs(t, err, ondemand.ErrRefused, value)
		require.ErrorContains(t, err, text)
		require.ErrorContains(t, err, dbAddr)
	}
	put(t, s.north, wire.OnDemandEndpointPrefix+dbAddr, dbValue)
	put(t, s.north, wire.OnDemandIdentityPrefix+"65547", "")
	_, err := resolve(t.Context(), through, question(dbAddr, 0))
	require.ErrorIs(t, err, ondemand.ErrRefused)
	require.ErrorContains(t, err, "65547")
	// A reserved identity has no labels to look up.
	put(t, s.north, wire.OnDemandEndpointPrefix+"10.1.0.12", `{"IP":"10.1.0.12","ID":4}`)
	answer, err := resolve(t.Context(), through, question("10.1.0.12", 6))
	require.NoError(t, err)
	require.EqualValues(t, 4, answer.Endpoint.Identity)
	require.Empty(t, answer.Identities)
}

// TestManyAtATime has as many look-ups under way as an agent may have.
func TestManyAtATime(t *testing.T) {
	const each = 50
	s := newSources(t, nil)
	through := readThrough(t, overSockets(t, s.address))
	eventually(t, through, question(dbAddr, 0), dbAnswer)
	var wg sync.WaitGroup
	for n := range byte(64) {
		addr := netip.AddrFrom4([4]byte{10, 1, 1, n}).String()
		put(t, s.north, wire.OnDemandEndpointPrefix+addr, `{"IP":"`+addr+`","ID":65547}`)
		wg.Go(func() {
			for range each {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				answer, err := resolve(ctx, through, question(addr, 0))
				cancel()
				if assert.NoError(t, err) {
					assert.Equal(t, addr+"/32", answer.Endpoint.Prefix.String())
					assert.Len(t, answer.Identities, 1)
				}
			}
		})
	}
	wg.Wait()
}

// TestBatch: of many questions in one call each is answered by itself, also where one of a
// request is refused, or can't be answered.
func TestBatch(t *testing.T) {
	s := newSources(t, mesh.Flags{"ondemand-cache-ttl": "0s"})
	through := readThrough(t, overSockets(t, s.address))
	eventually(t, through, question(dbAddr, 0), dbAnswer)
	const large, absent = 77, 99
	var questions []ondemand.Question
	for n := range 200 {
		addr := netip.AddrFrom4([4]byte{10, 1, 1, byte(n)}).String()
		value := `{"IP":"` + addr + `","ID":65547}`
		if n == large {
			value += strings.Repeat(" ", wire.MaxLookupBytes)
		}
		if n != absent {
			put(t, s.north, wire.OnDemandEndpointPrefix+addr, value)
		}
		questions = append(questions, question(addr, 0))
	}
	says := func(ofAbsent error) {
		t.Helper()
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			for n, got := range through.Resolve(context.Background(), questions) {
				switch n {
				case large:
					require.ErrorIs(t, got.Err, ondemand.ErrRefused)
					require.ErrorContains(t, got.Err, "too-large")
				case absent:
					require.ErrorIs(t, got.Err, ofAbsent)
				default:
					require.NoError(t, got.Err, n)
					require.Equal(t, questions[n].Addr, got.Answer.Endpoint.Prefix.Addr())
					require.Len(t, got.Answer.Identities, 1)
				}
			}
		}, patience, tick)
	}
	says(ondemand.ErrNotFound)
	put(t, s.north, wire.ClusterConfigKey("north"), `{"id":1,"capabilities":{"maxConnectedClusters":255,"syncedCanaries":true}}`)
	says(wire.ErrIncomplete)
}

// BenchmarkResolve is one miss, from the agent's question to endpoint and identity: two
// look-ups one after the other, over a socket and loopback.
func BenchmarkResolve(b *testing.B) {
	s := newSources(b, mesh.Flags{"ondemand-cache-ttl": "0s"})
	through := readThrough(b, overSockets(b, s.address))
	eventually(b, through, question(dbAddr, 0), dbAnswer)
	for b.Loop() {
		if _, err := resolve(b.Context(), through, question(dbAddr, 0)); err != nil {
			b.Fatal(err)
		}
	}
}
