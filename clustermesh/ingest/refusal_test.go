// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestRefusals writes each bad value among good ones, over nothing and over a
// good value of the same key, corrects it, and deletes it.
func TestRefusals(t *testing.T) {
	f := setup(t)
	f.config.Capabilities.ServiceExportsEnabled = &yes
	steady := f.oneOfEach()
	f.run()
	f.wants(steady)

	const address, number = "10.3.0.9", dbID
	var (
		endpointRow = fmt.Sprint("endpoint ", address)
		identityRow = fmt.Sprint("identity ", number)
	)
	goodEndpoint := two(f.endpointAt(address, webID, "web-9"))
	goodIdentity := two(f.identityAt(number, webLabels(peer)))
	goodNode := two(f.nodeAt("node-9", peer, peerID))
	goodService := two(f.serviceAt("db", peer, peerID))
	goodExport := two(f.exportAt("db", peer))
	otherNode := two(f.nodeAt("node-8", peer, peerID))[1]
	otherService := two(f.serviceAt("cache", peer, peerID))[1]
	otherExport := two(f.exportAt("cache", peer))[1]

	for _, test := range []struct {
		name   string
		good   []string // key and value
		row    string
		bad    string
		reason wire.Reason
		// keeps: the row of the good value stays when the bad one replaces it.
		keeps bool
	}{
		{"endpoint: malformed", goodEndpoint, endpointRow, `{"IP":"10.3.`, wire.ReasonMalformed, true},
		{"endpoint: too large", goodEndpoint, endpointRow, strings.Repeat(" ", wire.MaxValueBytes+1), wire.ReasonTooLarge, true},
		{"endpoint: of another address", goodEndpoint, endpointRow, endpointValue(t, "10.3.0.8", webID, "x"), wire.ReasonKeyMismatch, true},
		{"endpoint: another cluster's identity", goodEndpoint, endpointRow, endpointValue(t, address, 4<<16+1, "x"), wire.ReasonIdentityRange, false},
		{"endpoint: a local identity", goodEndpoint, endpointRow, endpointValue(t, address, localScope|1, "x"), wire.ReasonIdentityRange, false},
		{"identity: of another cluster", goodIdentity, identityRow, webLabels("other"), wire.ReasonForeignLabel, false},
		{"identity: of no cluster", goodIdentity, identityRow, "k8s:app=web;", wire.ReasonForeignLabel, false},
		{"identity: of two clusters", goodIdentity, identityRow, webLabels(peer) + webLabels("other"), wire.ReasonForeignLabel, false},
		{"identity: cluster by another source", goodIdentity, identityRow, strings.Replace(webLabels(peer), "k8s:io.cilium", "any:io.cilium", 1), wire.ReasonForeignLabel, false},
		{"node: malformed", goodNode, "node peer/node-9", `{"Name":3}`, wire.ReasonMalformed, true},
		{"node: of another name", goodNode, "node peer/node-9", otherNode, wire.ReasonKeyMismatch, true},
		{"node: of another cluster", goodNode, "node peer/node-9", two(f.nodeAt("node-9", "other", peerID))[1], wire.ReasonForeignCluster, false},
		{"node: of another ID", goodNode, "node peer/node-9", two(f.nodeAt("node-9", peer, 4))[1], wire.ReasonForeignCluster, false},
		{"service: malformed", goodService, "service peer/shop/db", `[]`, wire.ReasonMalformed, true},
		{"service: of another name", goodService, "service peer/shop/db", otherService, wire.ReasonKeyMismatch, true},
		{"service: of another cluster", goodService, "service peer/shop/db", two(f.serviceAt("db", "other", peerID))[1], wire.ReasonForeignCluster, false},
		{"service: of another ID", goodService, "service peer/shop/db", two(f.serviceAt("db", peer, 4))[1], wire.ReasonForeignCluster, false},
		{"export: malformed", goodExport, "export peer/shop/db", `{`, wire.ReasonMalformed, true},
		{"export: of another name", goodExport, "export peer/shop/db", otherExport, wire.ReasonKeyMismatch, true},
		{"export: of another cluster", goodExport, "export peer/shop/db", two(f.exportAt("db", "other"))[1], wire.ReasonForeignCluster, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := *f
			f.T = t
			key, good := test.good[0], test.good[1]
			refused, neighbour := f.row().Refused[test.reason], 0
			// bad puts the bad value between two good ones, which come through.
			bad := func(want map[string]string) {
				before, after := fmt.Sprintf("10.3.9.%d", neighbour), fmt.Sprintf("10.3.9.%d", neighbour+1)
				neighbour += 2
				want["endpoint "+before] = fmt.Sprint(webID, " before peer")
				want["endpoint "+after] = fmt.Sprint(webID, " after peer")
				f.put(f.endpointAt(before, webID, "before"))
				f.put(key, test.bad)
				f.put(f.endpointAt(after, webID, "after"))
				refused++
				f.wantsRow(func(c *assert, row state.RemoteCluster) {
					require.Equal(c, refused, row.Refused[test.reason])
				})
				f.wants(want)
			}
			want := maps.Clone(steady)
			bad(want)

			f.put(key, good)
			require.EventuallyWithT(t, func(c *assert) { require.Contains(c, f.content(), test.row) }, patience, tick)
			want[test.row] = f.content()[test.row]

			if !test.keeps {
				delete(want, test.row)
			}
			bad(want)
			delete(want, test.row)
			f.put(key, "")
			f.wants(want)

			// The deletion of a key that was only ever refused.
			bad(want)
			f.put(key, "")
			for row := range want {
				if strings.HasPrefix(row, "endpoint 10.3.9.") {
					f.put(f.key(wire.Endpoints, strings.TrimPrefix(row, "endpoint ")), "")
				}
			}
			f.wants(steady)
		})
	}

	// Keys that are none, and an identity whose number is another cluster's.
	for key, reason := range map[string]wire.Reason{
		f.key(wire.Endpoints, "10.3.0.300"):      wire.ReasonBadKey,
		f.key(wire.Endpoints, "::ffff:10.0.0.1"): wire.ReasonBadKey,
		f.key(wire.Identities, "007"):            wire.ReasonBadKey,
		f.key(wire.Identities, "web"):            wire.ReasonBadKey,
		f.key(wire.Identities, "65537"):          wire.ReasonIdentityRange,
	} {
		refused := f.row().Refused[reason]
		f.put(key, webLabels(peer))
		f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Equal(c, refused+1, row.Refused[reason]) })
		f.put(key, "")
	}
	f.wants(steady)
}

// TestWithdraws is the rule of the package's documentation, for every reason.
func TestWithdraws(t *testing.T) {
	takenBack := []wire.Reason{wire.ReasonIdentityRange, wire.ReasonForeignLabel, wire.ReasonForeignCluster}
	for _, resource := range wire.Resources {
		for _, reason := range wire.Reasons {
			require.Equal(t, resource == wire.Identities || slices.Contains(takenBack, reason),
				withdraws(&wire.Refusal{Resource: resource, Reason: reason}), "%s: %s", resource, reason)
		}
	}
}

func TestIdentityWithoutLabelsGoes(t *testing.T) {
	f := setup(t)
	f.run()
	f.put(f.identityAt(webID, webLabels(peer)))
	f.wants(map[string]string{fmt.Sprint("identity ", webID): webLabels(peer)})
	key, _ := f.identityAt(webID, "")
	_, err := f.client.Etcd().Put(t.Context(), key, "")
	require.NoError(t, err)
	f.wants(map[string]string{})
	f.wantsRow(func(c *assert, row state.RemoteCluster) {
		require.EqualValues(c, 1, row.Refused[wire.ReasonMalformed])
	})
	f.put(f.identityAt(webID, webLabels(peer)))
	f.wants(map[string]string{fmt.Sprint("identity ", webID): webLabels(peer)})
}

// TestRefusedInList has the bad values there before the first list.
func TestRefusedInList(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	delete(want, "export peer/shop/web")
	f.put(f.key(wire.Endpoints, "10.3.0.7"), "nonsense", f.key(wire.Nodes, "node-7"), "{}")
	f.put(f.identityAt(dbID, webLabels("other")))
	f.run()
	f.wants(want)
	f.ready()
	require.Equal(t, map[wire.Reason]uint64{wire.ReasonMalformed: 2, wire.ReasonForeignLabel: 1}, f.row().Refused)
}

func TestHostOfAnotherClusterIsRemoteNode(t *testing.T) {
	f := setup(t)
	f.put(f.endpointAt("192.168.3.1", 1, ""))
	f.put(f.endpointAt("192.168.3.2", 255, ""))
	f.run()
	f.wants(map[string]string{"endpoint 192.168.3.1": "6  peer", "endpoint 192.168.3.2": "255  peer"})
}

func TestConflictsAreCounted(t *testing.T) {
	f := setup(t)
	local := f.writer.Origin("home", 1, state.SourceLocal)
	owner, prefix := state.Owner{Object: "endpoint/shop/a"}, state.PrefixOf(netip.MustParseAddr("10.3.0.1"))
	tx := f.writer.Begin()
	tx.UpsertEndpoint(local, owner, wire.Endpoint{Prefix: prefix, Identity: 1<<16 + 1, Pod: "a"})
	tx.Commit()
	f.put(f.identityAt(webID, webLabels(peer)))
	f.put(f.endpointAt("10.3.0.1", webID, "web-1"))
	f.run()
	f.wantsRow(func(c *assert, row state.RemoteCluster) {
		require.EqualValues(c, 1, row.Conflicts)
		require.Equal(c, 1, row.Resources[wire.Endpoints].Entries)
	})
	require.Equal(t, fmt.Sprint(1<<16+1, " a home"), f.content()["endpoint 10.3.0.1"])

	// The holder gives it up, of which the remote cluster hears nothing.
	tx = f.writer.Begin()
	tx.DeleteEndpoint(local, owner, prefix)
	tx.Commit()
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Zero(c, row.Conflicts) })
	require.Equal(t, fmt.Sprint(webID, " web-1 peer"), f.content()["endpoint 10.3.0.1"])
}
