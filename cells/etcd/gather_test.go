// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gatherSource answers when it is told to, and notes what it was asked.
type gatherSource struct {
	asked chan []string
	reply chan error
}

func (s *gatherSource) read(ctx context.Context, keys []string) ([]string, error) {
	s.asked <- slices.Clone(keys)
	select {
	case err := <-s.reply:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	values := make([]string, len(keys))
	for i, key := range keys {
		values[i] = strings.ToUpper(key)
	}
	return values, nil
}

var errOneKey = errors.New("one key")

func newGatherSource(flights, maxKeys int) (*gatherSource, *Gather[string]) {
	s := &gatherSource{asked: make(chan []string, 64), reply: make(chan error)}
	return s, newGather(gatherConfig[string]{Read: s.read, Flights: flights, MaxKeys: maxKeys, Timeout: time.Minute,
		Alone: func(err error) bool { return errors.Is(err, errOneKey) }})
}

// waits has calls wait, one after the other, and gives what each is told.
func (g *Gather[V]) waits(t *testing.T, ctx context.Context, calls ...[]string) []chan any {
	t.Helper()
	var results []chan any
	for _, keys := range calls {
		g.mu.Lock()
		before := len(g.waiting)
		g.mu.Unlock()
		result := make(chan any, 1)
		results = append(results, result)
		go func() {
			if got := g.Get(ctx, keys)[0]; got.Err != nil {
				result <- got.Err
			} else {
				result <- fmt.Sprint(got.Values)
			}
		}()
		require.Eventually(t, func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.waiting) == before+1
		}, time.Minute, time.Millisecond)
	}
	return results
}

func TestGather(t *testing.T) {
	s, g := newGatherSource(1, 4)
	first := make(chan any, 1)
	go func() {
		got := g.Get(t.Context(), []string{"a"})[0]
		first <- fmt.Sprint(got.Values, got.Err)
	}()
	require.Equal(t, []string{"a"}, <-s.asked, "in quiet each is asked for at once")

	results := g.waits(t, t.Context(), []string{"b", "c"}, []string{"d"}, []string{"e", "f"}, []string{"g", "h", "i", "j", "k"}, []string{"l"})
	s.reply <- nil
	require.Equal(t, "[A] <nil>", <-first)
	require.Equal(t, []string{"b", "c", "d"}, <-s.asked, "what waits is asked for together, and no ask is divided")
	s.reply <- nil
	require.Equal(t, "[B C]", <-results[0])
	require.Equal(t, "[D]", <-results[1])
	require.Equal(t, []string{"e", "f"}, <-s.asked)
	s.reply <- nil
	require.Equal(t, "[E F]", <-results[2])
	require.Equal(t, []string{"g", "h", "i", "j", "k"}, <-s.asked, "as large as one ask may be")
	s.reply <- nil
	require.Equal(t, "[G H I J K]", <-results[3])
	require.Equal(t, []string{"l"}, <-s.asked)
	s.reply <- nil
	require.Equal(t, "[L]", <-results[4])

	go g.Get(t.Context(), []string{"m"}) // it is asked for again: nothing was left under way
	require.Equal(t, []string{"m"}, <-s.asked)
	s.reply <- nil
}

// TestGatherFails: an error is everybody's, unless it may be one key's.
func TestGatherFails(t *testing.T) {
	s, g := newGatherSource(1, 9)
	go g.Get(t.Context(), []string{"a"})
	<-s.asked
	results := g.waits(t, t.Context(), []string{"b"}, []string{"c"})
	s.reply <- nil
	<-s.asked
	away := errors.New("away")
	s.reply <- away
	require.Equal(t, away, <-results[0])
	require.Equal(t, away, <-results[1])

	go g.Get(t.Context(), []string{"a"})
	<-s.asked
	results = g.waits(t, t.Context(), []string{"b"}, []string{"c"})
	s.reply <- nil
	require.Equal(t, []string{"b", "c"}, <-s.asked)
	s.reply <- errOneKey
	require.Equal(t, []string{"b"}, <-s.asked)
	s.reply <- errOneKey
	require.Equal(t, []string{"c"}, <-s.asked)
	s.reply <- nil
	require.Equal(t, errOneKey, <-results[0])
	require.Equal(t, "[C]", <-results[1])
}

// TestGatherLeaves: who doesn't wait any longer keeps nobody else from an answer, be it
// the one that was to make the request.
func TestGatherLeaves(t *testing.T) {
	s, g := newGatherSource(1, 9)
	go g.Get(t.Context(), []string{"a"})
	<-s.asked
	leaving, cancel := context.WithCancel(t.Context())
	left := g.waits(t, leaving, []string{"b"})
	stays := g.waits(t, t.Context(), []string{"c"})
	cancel()
	require.ErrorIs(t, (<-left[0]).(error), context.Canceled)
	s.reply <- nil
	require.Equal(t, []string{"c"}, <-s.asked)

	// Now the one that leads has to go.
	leaving, cancel = context.WithCancel(t.Context())
	left = g.waits(t, leaving, []string{"d"})
	follows := g.waits(t, t.Context(), []string{"e"})
	s.reply <- nil
	require.Equal(t, "[C]", <-stays[0])
	require.Equal(t, []string{"d", "e"}, <-s.asked)
	cancel()
	s.reply <- nil
	require.Equal(t, "[E]", <-follows[0])
	<-left[0]
}

// TestGatherMany: every call is answered, with what it has asked for.
func TestGatherMany(t *testing.T) {
	var mu sync.Mutex
	underWay, most := 0, 0
	g := newGather(gatherConfig[string]{Flights: 2, MaxKeys: 16, Timeout: time.Minute,
		Alone: func(err error) bool { return errors.Is(err, errOneKey) },
		Read: func(_ context.Context, keys []string) ([]string, error) {
			mu.Lock()
			underWay++
			most = max(most, underWay)
			mu.Unlock()
			defer func() { mu.Lock(); underWay--; mu.Unlock() }()
			if once := slices.Compact(slices.Sorted(slices.Values(keys))); len(once) < len(keys) {
				t.Errorf("a key is asked for twice: %q", keys)
			}
			if slices.Contains(keys, "3-3") {
				return nil, errOneKey
			}
			return keys, nil
		}})
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			for j := range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+j)%7 == 0 {
					go cancel()
				}
				key := fmt.Sprint(i, "-", j)
				for n, got := range g.Get(ctx, []string{key, "all"}, []string{key + "b"}) {
					want := [][]string{{key, "all"}, {key + "b"}}[n]
					if got.Err == nil && !slices.Equal(got.Values, want) {
						t.Errorf("asked for %s, got %s", want, got.Values)
					} else if got.Err != nil && ctx.Err() == nil && (key != "3-3" || n != 0) {
						t.Error(got.Err)
					}
				}
				cancel()
			}
		})
	}
	group.Wait()
	require.Zero(t, g.underWay)
	require.Empty(t, g.waiting)
	require.Positive(t, most)
}

// BenchmarkGather is what a key costs with 64 who look one up at a time, each by itself
// and along with the others.
func BenchmarkGather(b *testing.B) {
	server := startServer(b, ServerConfig{})
	client := newTestClient(b, ClientConfig{Endpoints: []string{server.URL()}})
	for _, bench := range []struct {
		name string
		get  func(ctx context.Context, key string) error
	}{
		{"alone", func(ctx context.Context, key string) error {
			_, err := client.getTogether(ctx, 1<<20, key)
			return err
		}},
		{"gathered", func(ctx context.Context, key string) error {
			return client.Lookup(ctx, []string{key})[0].Err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bench.get(b.Context(), "some/key"); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
