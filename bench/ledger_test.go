// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestLedgerAgainstModel has states of a few objects arrive in the order of each
// object, some of them overtaken.
func TestLedgerAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			book = newLedger()
			sent = map[objectOf][]int{}
			at   = map[objectOf]int{} // states that have arrived
			due  = time.Now()
			seen int
		)
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				object := objectOf{rapid.IntRange(0, 1).Draw(t, "cluster"), rapid.IntRange(0, 2).Draw(t, "endpoint")}
				sent[object] = append(sent[object], book.send(object, due))
			},
			"arrive": func(t *rapid.T) {
				object := objectOf{rapid.IntRange(0, 1).Draw(t, "cluster"), rapid.IntRange(0, 2).Draw(t, "endpoint")}
				waiting := len(sent[object]) - at[object]
				if waiting == 0 {
					t.Skip("nothing is on its way")
				}
				at[object] += rapid.IntRange(1, waiting).Draw(t, "states")
				book.arrive(sent[object][at[object]-1], due.Add(time.Millisecond))
				seen++
			},
			"arrive again": func(t *rapid.T) {
				for object, n := range at {
					book.arrive(sent[object][n-1], due)
				}
				book.arrive(0, due)
				book.arrive(1<<20, due)
			},
			"": func(t *rapid.T) {
				var all, arrived, sum int
				for object, numbers := range sent {
					all += len(numbers)
					arrived += at[object]
					sum += numbers[len(numbers)-1]
				}
				got := book.tally()
				require.Equal(t, []int{all, arrived, seen, sum}, []int{got.sent, got.arrived, got.seen, got.sum})
				require.GreaterOrEqual(t, got.longest, all-arrived)
				done, _ := book.complete()
				require.Equal(t, all == arrived, done)
			},
		})
	})
}

func TestLedgerTellsWhenComplete(t *testing.T) {
	book := newLedger()
	first, second := book.send(objectOf{0, 1}, time.Now()), book.send(objectOf{0, 1}, time.Now())
	done, changed := book.complete()
	require.False(t, done)
	book.arrive(first, time.Now())
	select {
	case <-changed:
		require.Fail(t, "one is missing still")
	default:
	}
	book.arrive(second, time.Now())
	<-changed
}

// TestLedgerTimesWhatFollows counts from when an event was accepted, whichever
// of both is known first.
func TestLedgerTimesWhatFollows(t *testing.T) {
	book, due := newLedger(), time.Now()
	first, second, third := book.send(objectOf{0, 1}, due), book.send(objectOf{0, 2}, due), book.send(objectOf{0, 3}, due)
	book.accept(first, due.Add(time.Millisecond))
	book.arrive(first, due.Add(3*time.Millisecond))
	book.arrive(second, due.Add(6*time.Millisecond))
	book.accept(second, due.Add(2*time.Millisecond))
	book.accept(third, due.Add(3*time.Millisecond))
	got := book.tally()
	accepted, beyond := hdrhistogram.Import(got.accepted), hdrhistogram.Import(got.beyond)
	require.EqualValues(t, []int64{3, 1000, 3001}, []int64{accepted.TotalCount(), accepted.Min(), accepted.Max()})
	require.EqualValues(t, []int64{2, 2000, 4001}, []int64{beyond.TotalCount(), beyond.Min(), beyond.Max()})
}
