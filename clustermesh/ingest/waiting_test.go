// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestIdentityAfterEndpoint: the endpoint shows up together with its identity.
func TestIdentityAfterEndpoint(t *testing.T) {
	f := setup(t)
	f.put(f.identityAt(webID, webLabels(peer)))
	f.put(f.endpointAt("10.3.0.1", webID, "web"))
	f.run()
	f.wants(map[string]string{fmt.Sprint("identity ", webID): webLabels(peer), "endpoint 10.3.0.1": fmt.Sprint(webID, " web peer")})
	f.ready()

	f.put(f.endpointAt("10.3.0.1", dbID, "db"))
	f.put(f.endpointAt("10.3.0.2", dbID, "db"))
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Equal(c, 2, row.HeldBack) })
	f.wants(map[string]string{fmt.Sprint("identity ", webID): webLabels(peer), "endpoint 10.3.0.1": fmt.Sprint(webID, " web peer")})

	// One transaction brings the identity and what waited for it: a reader that
	// sees the identity sees the endpoints.
	_, _, changed, _ := f.tables.Identities.GetWatch(f.db.ReadTxn(), state.IdentityByID(dbID))
	f.put(f.identityAt(dbID, webLabels(peer)))
	<-changed
	require.Equal(t, map[string]string{
		fmt.Sprint("identity ", webID): webLabels(peer), fmt.Sprint("identity ", dbID): webLabels(peer),
		"endpoint 10.3.0.1": fmt.Sprint(dbID, " db peer"), "endpoint 10.3.0.2": fmt.Sprint(dbID, " db peer"),
	}, f.content())
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Zero(c, row.HeldBack) })
	require.Zero(t, f.row().Late)
}

func TestIdentityThatNeverComes(t *testing.T) {
	for name, adjust := range map[string]func(*Options){
		"timeout": func(o *Options) { o.HoldTimeout = 50 * time.Millisecond },
		"limit":   func(o *Options) { o.HoldLimit = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, adjust)
			f.run()
			f.ready()
			f.put(f.endpointAt("10.3.0.1", webID, "web"))
			f.wants(map[string]string{"endpoint 10.3.0.1": fmt.Sprint(webID, " web peer")})
			f.wantsRow(func(c *assert, row state.RemoteCluster) {
				require.EqualValues(c, 1, row.Late)
				require.Zero(c, row.HeldBack)
			})
		})
	}
}

// TestWhatWaitsIsDeleted: an endpoint that was held back and deleted doesn't
// come with its identity, and one that waits is let through when the connection ends.
func TestWhatWaitsIsDeleted(t *testing.T) {
	f := setup(t)
	stop := f.run()
	f.ready()
	f.put(f.endpointAt("10.3.0.1", webID, "web"))
	f.put(f.endpointAt("10.3.0.2", dbID, "db"))
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Equal(c, 2, row.HeldBack) })
	f.put(f.key(wire.Endpoints, "10.3.0.1"), "")
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.Equal(c, 1, row.HeldBack) })
	f.put(f.identityAt(webID, webLabels(peer)))
	f.wants(map[string]string{fmt.Sprint("identity ", webID): webLabels(peer)})

	stop()
	require.Equal(t, map[string]string{
		fmt.Sprint("identity ", webID): webLabels(peer), "endpoint 10.3.0.2": fmt.Sprint(dbID, " db peer"),
	}, f.content())
	require.EqualValues(t, 1, f.row().Late)
}
