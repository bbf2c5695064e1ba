// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestKeptKeyAway: while etcd is away the job that watches says that it can't, and why, and
// the job that writes doesn't; afterwards what somebody else made of the key meanwhile is
// seen, and put right.
func TestKeptKeyAway(t *testing.T) {
	const ours, theirs = `{"id":3}`, `{"id":4}`
	p := newPair(t)
	writer := etcd.NewWriter(quietly(), p.through)
	kept := NewKeptKey(quietly(), p.through, writer, wire.ClusterConfigPrefix, localName, []byte(ours))
	ctx, cancel := context.WithCancel(t.Context())
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer cancel()
	var writes, watches healthRecorder
	jobs.Go(func() { _ = writer.Run(ctx) })
	jobs.Go(func() { _ = kept.write(ctx, &writes) })
	jobs.Go(func() { _ = kept.watch(ctx, &watches) })
	is := func() string {
		value, err := p.direct[0].Get(t.Context(), wire.ClusterConfigKey(localName))
		require.NoError(t, err)
		return string(value)
	}
	put := func(value string) {
		_, err := p.direct[0].Etcd().Put(t.Context(), wire.ClusterConfigKey(localName), value)
		require.NoError(t, err)
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, 2*time.Minute, 10*time.Millisecond, what)
	}
	eventually("it is written", func() bool { return is() == ours })
	// Seen by what it does: only who watches notices this.
	put(theirs)
	eventually("it is written again", func() bool { return is() == ours })

	p.relay.Aim("")
	eventually("the reason is told", func() bool {
		return strings.Contains(watches.problem(), `"`+wire.ClusterConfigPrefix+`": `) && strings.Contains(watches.problem(), "connection error")
	})
	require.Empty(t, writes.problem())
	put(theirs)
	p.aim(0)
	eventually("it is written again", func() bool { return is() == ours })
	eventually("all is well", func() bool { return watches.problem() == "" })
}

// TestKeptKeyListing: what is only listed isn't watched yet, at an etcd that takes the
// connection and doesn't answer.
func TestKeptKeyListing(t *testing.T) {
	p := newPair(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	require.NoError(t, err)
	defer silent.Close()
	p.relay.Aim(silent.Addr().String())
	kept := NewKeptKey(quietly(), p.through, nil, wire.ClusterConfigPrefix, localName, []byte(`{"id":3}`))
	close(kept.written)
	ctx, cancel := context.WithCancel(t.Context())
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer cancel()
	var health healthRecorder
	jobs.Go(func() { _ = kept.watch(ctx, &health) })

	const watching = "Watching for changes by others"
	require.Eventually(t, func() bool { return len(health.said()) > 1 }, 2*time.Minute, 10*time.Millisecond)
	require.NotContains(t, health.said(), watching)
	p.aim(0)
	require.Eventually(t, func() bool {
		said := health.said()
		return said[len(said)-1] == watching
	}, 2*time.Minute, 10*time.Millisecond)
}
