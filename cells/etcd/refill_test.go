// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCompleteAfterLoss has a Scope completed by an owner that doesn't know yet
// what etcd has lost. No canary may say that all of it is there.
func TestCompleteAfterLoss(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	asked := make(chan struct{}, 1)
	s := w.Scope(leased("p/", func([]string) { asked <- struct{}{} }))
	want := numbered(3, "v")
	s.Apply(ops(want))
	s.CompleteAfter(0)
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})

	_, err := c.etcd.Delete(t.Context(), "", clientv3.WithPrefix())
	require.NoError(t, err)
	loseEverything(t, w)
	s.CompleteAfter(0) // before the owner was asked
	<-asked
	s.CompleteAfter(0)
	require.Zero(t, w.Stats().Pending)
	require.Empty(t, content(t, c, "synced/"))

	s.Apply(ops(want))
	s.CompleteAfter(1)
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
	require.Equal(t, want, content(t, c, "p/"))
}

// loseEverything has a Writer find that its etcd has none of its keys.
func loseEverything(t testing.TB, w *Writer) {
	w.mu.Lock()
	lost := w.loseEverything()
	w.mu.Unlock()
	w.makeGood(t.Context(), lost)
}

// TestReaderResendDuringList asks for entries while a list is under way, which
// has passed them over. Its end doesn't count as the answer.
func TestReaderResendDuringList(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1")
	var r *Reader
	synced := make(chan Batch, 10)
	entries := 0 // the Reader's goroutine's
	r = NewReader(testReaderConfig(t), ObserverFunc(func(_ context.Context, b Batch) {
		entries += len(b.Events)
		if b.Listing && entries == 1 {
			require.EqualValues(t, 1, r.Resend(nil))
		}
		if b.Synced {
			b.Events = make([]Event, entries)
			synced <- b
		}
	}))
	startReader(t, r, c)
	first := <-synced
	require.Zero(t, first.Resent)
	require.Len(t, first.Events, 1)
	second := <-synced
	require.EqualValues(t, 1, second.Resent)
	require.Len(t, second.Events, 2, "the entry came again before")
}
