// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"context"
	"sync"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/netns/enforcer"
)

// friend is the value of the label "app" whose identities are allowed.
const friend = "friend"

// allowFriends does what a policy does that selects by labels: an identity is allowed
// when the agent knows that it has them, and no sooner. It follows the agent that runs
// now until stop.
func allowFriends(t *testing.T, db *statedb.DB, identities statedb.Table[*state.Identity], e *enforcer.Enforcer) (stop func()) {
	txn := db.WriteTxn(identities)
	changes, err := identities.Changes(txn)
	txn.Commit()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var (
		following sync.WaitGroup
		failure   error
	)
	following.Go(func() {
		for {
			seq, changed := changes.Next(db.ReadTxn())
			for change := range seq {
				identity := change.Object
				if app, _ := wire.Label(identity.Labels, "app"); app != friend {
					continue
				}
				apply := e.Allow
				if change.Deleted {
					apply = e.Deny
				}
				if failure = apply(identity.ID); failure != nil {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		following.Wait()
		require.NoError(t, failure)
	})
}
