// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	local  = &state.Origin{Cluster: "here", ClusterID: 1, Source: state.SourceLocal}
	remote = &state.Origin{Cluster: "there", ClusterID: 2, Source: state.SourceClusterMesh}
	other  = &state.Origin{Cluster: "elsewhere", ClusterID: 3, Source: state.SourceClusterMesh}
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func mustKey(t testing.TB, prefix string) Key {
	t.Helper()
	key, ok := NewKey(netip.MustParsePrefix(prefix))
	if !ok {
		t.Fatalf("no key for %s", prefix)
	}
	return key
}

func entryOf(t testing.TB, prefix string, identity uint32, tunnel string) Entry {
	t.Helper()
	return Entry{mustKey(t, prefix), NewValue(identity, addr(tunnel), 0, 0)}
}

func endpoint(origin *state.Origin, prefix, host string, identity uint32) *state.Endpoint {
	return state.NewEndpoint(state.Claim{Origin: origin, Endpoint: wire.Endpoint{
		Prefix: netip.MustParsePrefix(prefix), HostIP: addr(host), Identity: identity,
	}})
}
