// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestEachResourceCompletesWithItsTable(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
	})
	r.round()
	require.Contains(t, r.scopes[wire.Nodes].get("n1"), `"Name":"n1"`, "what is in no namespace goes before namespaces are known")
	require.Zero(t, r.scopes[wire.Endpoints].Len(), "what is in a namespace waits for them")

	r.initialize(wire.Nodes, wire.Endpoints)
	r.round()
	require.Equal(t, 1, r.scopes[wire.Nodes].completed())
	require.Zero(t, r.scopes[wire.Endpoints].completed())

	r.initialize(state.Namespaces)
	r.round()
	require.Contains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), `"K8sPodName":"x"`)
	require.Equal(t, 1, r.scopes[wire.Endpoints].completed())
	require.Zero(t, r.scopes[wire.Services].completed())

	r.initialize(wire.Services, wire.ServiceExports, wire.Identities)
	r.round()
	r.round()
	for resource, s := range r.scopes {
		require.Equal(t, 1, s.completed(), resource)
	}
	require.Equal(t, map[wire.Resource]int{
		wire.Identities: 0, wire.Nodes: 1, wire.Endpoints: 1, wire.Services: 0, wire.ServiceExports: 0,
	}, r.export.Counts())
}

// TestIdentitiesDontWaitForPods: where all are pushed, what pods say is about endpoints
// alone.
func TestIdentitiesDontWaitForPods(t *testing.T) {
	r := newRigOf(t, Options{}, filter.SyncAll, "eu")
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
		tx.UpsertIdentity(r.local, identity(200000, "don"))
	})
	r.initialize(state.Namespaces, wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports)
	r.round()
	require.Equal(t, "200000", r.scopes[wire.Identities].list())
	require.Equal(t, 1, r.scopes[wire.Identities].completed())
	require.Zero(t, r.scopes[wire.Endpoints].Len())
	require.Zero(t, r.scopes[wire.Endpoints].completed())

	r.initialize(state.Workloads)
	r.round()
	require.Equal(t, "10.0.0.1", r.scopes[wire.Endpoints].list())
	require.Equal(t, 1, r.scopes[wire.Endpoints].completed())
}

func TestOnlyWhatIsLocalIsExported(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	foreignService := service("don", "web", true)
	foreignService.Cluster, foreignService.ClusterID = "theirs", 4
	foreignExport := serviceExport("don", "web")
	foreignExport.Cluster = "theirs"
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("10.0.0.1", "don", "theirs"))
		tx.UpsertIdentity(r.remote, identity(270000, "don"))
		tx.UpsertNode(r.remote, wire.Node{Name: "n1", Cluster: "theirs", ClusterID: 4})
		tx.UpsertService(r.remote, foreignService)
		tx.UpsertServiceExport(r.remote, foreignExport)
		tx.UpsertService(r.local, service("don", "web", true))
		tx.UpsertService(r.local, service("don", "private", false))
		tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
	})
	r.round()
	require.Equal(t, map[wire.Resource]int{
		wire.Identities: 0, wire.Nodes: 0, wire.Endpoints: 0, wire.Services: 1, wire.ServiceExports: 1,
	}, r.export.Counts())

	// A remote service of the same name that goes takes nothing along.
	r.write(func(tx *state.Txn) {
		tx.DeleteService(r.remote, "theirs", "don", "web")
		tx.DeleteServiceExport(r.remote, "theirs", "don", "web")
	})
	r.round()
	require.NotEmpty(t, r.scopes[wire.Services].get("don/web"))
	require.NotEmpty(t, r.scopes[wire.ServiceExports].get("don/web"))

	// A service that is no longer shared goes.
	r.write(func(tx *state.Txn) { tx.UpsertService(r.local, service("don", "web", false)) })
	r.round()
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.Services].lastBatch())
}

func TestAddressChangesHands(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	old, next := state.Owner{Object: "endpoint/old"}, state.Owner{Object: "endpoint/next"}
	endpoints := r.scopes[wire.Endpoints]
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, old, endpoint("10.0.0.1", "don", "old"))
	})
	r.round()
	r.write(func(tx *state.Txn) {
		tx.UpsertEndpoint(r.local, next, endpoint("10.0.0.1", "don", "next"))
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("10.0.0.1", "don", "theirs"))
	})
	r.round()
	require.Contains(t, endpoints.get("10.0.0.1"), `"old"`)

	r.write(func(tx *state.Txn) { tx.DeleteEndpoint(r.local, old, endpoint("10.0.0.1", "", "").Prefix) })
	r.round()
	require.Contains(t, endpoints.get("10.0.0.1"), `"next"`)
	require.Equal(t, []string{"10.0.0.1"}, endpoints.lastBatch(), "the key must never be gone in between")

	// What is left is a remote cluster's: not ours to export.
	r.write(func(tx *state.Txn) { tx.DeleteEndpoint(r.local, next, endpoint("10.0.0.1", "", "").Prefix) })
	r.round()
	require.Equal(t, []string{"-10.0.0.1"}, endpoints.lastBatch())
}

func TestNamedPortsAreAnOption(t *testing.T) {
	for _, named := range []bool{false, true} {
		r := newRig(t, Options{NamedPorts: named})
		r.begin()
		r.initializeAll()
		r.write(func(tx *state.Txn) {
			r.namespace(tx, "don", true)
			ep := endpoint("10.0.0.1", "don", "x")
			ep.NamedPorts = []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}}
			tx.UpsertEndpoint(r.local, owner, ep)
		})
		r.round()
		require.Equal(t, named, strings.Contains(r.scopes[wire.Endpoints].get("10.0.0.1"), "NamedPorts"))
	}
}

func TestNamespaceFlipDecidesItsObjectsAgain(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		r.namespace(tx, "don-2", true)
		for i, namespace := range []string{"don", "don-2", "nowhere"} {
			tx.UpsertEndpoint(r.local, owner, endpoint([]string{"10.0.0.1", "fd00::2", "10.0.0.3"}[i], namespace, "x"))
			tx.UpsertIdentity(r.local, identity(200000+uint32(i), namespace))
			tx.UpsertService(r.local, service(namespace, "web", true))
			tx.UpsertServiceExport(r.local, serviceExport(namespace, "web"))
		}
		tx.UpsertIdentity(r.local, wire.Identity{ID: 200009, Labels: "k8s:app=x;"}) // in no namespace
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
	})
	r.round()
	namespaced := []wire.Resource{wire.Endpoints, wire.Identities, wire.Services, wire.ServiceExports}
	for _, resource := range namespaced {
		require.Equal(t, 2, r.scopes[resource].Len(), resource)
	}

	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	r.round()
	require.Equal(t, []string{"-10.0.0.1"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"-200000"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.Services].lastBatch())
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.ServiceExports].lastBatch())

	r.write(func(tx *state.Txn) { r.namespace(tx, "don", true) })
	r.round()
	require.Equal(t, []string{"10.0.0.1"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"200000"}, r.scopes[wire.Identities].lastBatch())

	// Another change of a namespace decides nothing again.
	batches := len(r.scopes[wire.Endpoints].batches)
	r.write(func(tx *state.Txn) {
		tx.UpsertNamespace(state.Namespace{Name: "don", Labels: map[string]string{"a": "b"}})
	})
	r.round()
	require.Len(t, r.scopes[wire.Endpoints].batches, batches)

	// What is in no namespace isn't kept by one.
	for _, f := range r.export.followers {
		if notGlobal, _ := f.counts(); f.resource() != wire.Nodes {
			require.Equal(t, 1, notGlobal, f.resource())
		}
	}

	// A namespace that comes is global by the policy; one that goes isn't.
	r.write(func(tx *state.Txn) { r.namespace(tx, "nowhere", true); tx.DeleteNamespace("don-2") })
	r.round()
	require.ElementsMatch(t, []string{"10.0.0.3", "-fd00::2"}, r.scopes[wire.Endpoints].lastBatch())
	require.ElementsMatch(t, []string{"200002", "-200001"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, 1, r.scopes[wire.Nodes].Len())
}

func TestRefill(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
			tx.UpsertEndpoint(r.local, owner, endpoint(ip, "don", "x"))
		}
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
		tx.UpsertService(r.local, service("don", "web", true))
		tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
		tx.UpsertIdentity(r.local, identity(200000, "don"))
	})
	r.initializeAll()
	r.round()

	r.lose(placeName{wire.Endpoints, false}, []string{"10.0.0.2"})
	r.lose(placeName{wire.Endpoints, false}, []string{"10.0.0.2", "10.9.9.9", "not an address"})
	r.lose(placeName{wire.Nodes, false}, []string{"n1", "gone"})
	r.lose(placeName{wire.Services, false}, []string{"don/web", "nonsense"})
	r.lose(placeName{wire.ServiceExports, false}, []string{"don/web"})
	r.lose(placeName{wire.Identities, false}, []string{"200000", "x"})
	r.round()
	require.Equal(t, []string{"10.0.0.2"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"n1"}, r.scopes[wire.Nodes].lastBatch())
	require.Equal(t, []string{"don/web"}, r.scopes[wire.Services].lastBatch())
	require.Equal(t, []string{"don/web"}, r.scopes[wire.ServiceExports].lastBatch())
	require.Equal(t, []string{"200000"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, 2, r.scopes[wire.Endpoints].completed())

	r.lose(placeName{wire.Endpoints, false}, nil)
	r.round()
	require.ElementsMatch(t, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, 3, r.scopes[wire.Endpoints].completed())
	require.Equal(t, 2, r.scopes[wire.Nodes].completed())
}

func TestWhatCannotBeEncodedIsNamedAndSkipped(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	tooLarge := service("don", "bad", true)
	tooLarge.Labels = map[string]string{"a": strings.Repeat("x", wire.MaxValueBytes)}
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertService(r.local, tooLarge)
		tx.UpsertService(r.local, service("don", "good", true))
	})
	r.round()
	require.Equal(t, []string{"don/good"}, r.scopes[wire.Services].lastBatch())
	health := &healthRecorder{}
	r.export.report(health)
	require.Contains(t, health.problem(), "don/bad")

	r.write(func(tx *state.Txn) { tx.UpsertService(r.local, service("don", "bad", true)) })
	r.round()
	require.Equal(t, []string{"don/bad"}, r.scopes[wire.Services].lastBatch())
	r.export.report(health)
	require.Empty(t, health.problem())
}

func TestLargeRoundsComeInChunks(t *testing.T) {
	r := newRig(t, Options{})
	admitted := 0
	r.export.admit = func(context.Context) error { admitted++; return nil }
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		ip := netip.MustParseAddr("10.0.0.0")
		for range 2*chunk + 1 {
			ip = ip.Next()
			tx.UpsertEndpoint(r.local, owner, endpoint(ip.String(), "don", "x"))
		}
	})
	r.initializeAll()
	r.round()
	require.Len(t, r.scopes[wire.Endpoints].batches, 3)
	require.Equal(t, 2, admitted)
	require.Equal(t, 2*chunk+1, r.scopes[wire.Endpoints].Len())
}

func TestRunFollowsTheTables(t *testing.T) {
	r := newRig(t, Options{})
	r.scopes[wire.Identities].loadErr = errors.New("etcd is away")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	health := &healthRecorder{}
	var jobs sync.WaitGroup
	jobs.Go(func() { _ = r.export.run(ctx, health) })
	jobs.Go(func() { _ = r.export.awaitSync(ctx, health) })
	defer jobs.Wait()
	defer cancel()

	r.initializeAll()
	<-r.export.Synced()
	require.Equal(t, 2, r.scopes[wire.Identities].loads, "a failed load is tried again")
	require.Equal(t, 1, r.scopes[wire.Endpoints].loads)

	endpoints := r.scopes[wire.Endpoints]
	eventually := func(condition func() bool) {
		t.Helper()
		require.Eventually(t, condition, 10*time.Second, time.Millisecond)
	}
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
	})
	eventually(func() bool { return endpoints.get("10.0.0.1") != "" })
	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	eventually(func() bool { return endpoints.get("10.0.0.1") == "" })
	completed := endpoints.completed()
	r.lose(placeName{wire.Endpoints, false}, nil)
	eventually(func() bool { return endpoints.completed() == completed+1 })
}
