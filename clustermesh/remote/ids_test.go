// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIDs(t *testing.T) {
	ids := newIDs()
	_, err := ids.reserve(5, "red")
	require.NoError(t, err)
	_, err = ids.reserve(5, "red")
	require.NoError(t, err, "a holder may ask again")

	freed, err := ids.reserve(5, "blue")
	require.ErrorContains(t, err, `cluster ID 5 is used by cluster "red"`)

	ids.release(5, "blue")
	_, err = ids.reserve(5, "blue")
	require.Error(t, err, "only its holder frees an ID")
	select {
	case <-freed:
		t.Fatal("nothing was freed")
	default:
	}

	ids.release(5, "red")
	<-freed
	_, err = ids.reserve(5, "blue")
	require.NoError(t, err)
}
