// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestKeyMapAgainstModel compares it with Go's own after each of many operations,
// with keys of all lengths, so that the arena and the entries have several chunks
// and are made anew.
func TestKeyMapAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, model := newKeyMap[uint64](), map[string]uint64{}
		key := rapid.OneOf(
			rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(0, 1500).Draw(t, "number")) }),
			rapid.Custom(func(t *rapid.T) string {
				return strings.Repeat("k", rapid.SampledFrom([]int{0, 1, 127, 128, 5000, 16383, 16384, 40000}).Draw(t, "length"))
			}))
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.Uint64().Draw(t, "value")
				_, known := model[k]
				at, inserted := m.put(k)
				require.Equal(t, !known, inserted)
				*at, model[k] = v, v
			},
			"put many": func(t *rapid.T) {
				from := rapid.IntRange(0, 1500).Draw(t, "from")
				for i := range rapid.IntRange(0, 1300).Draw(t, "count") {
					k := fmt.Sprint(from + i)
					at, _ := m.put(k)
					*at, model[k] = uint64(i), uint64(i)
				}
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				_, known := model[k]
				require.Equal(t, known, m.delete(k))
				delete(model, k)
			},
			"delete many": func(t *rapid.T) {
				below := rapid.Uint64Range(0, 1300).Draw(t, "below")
				for k, v := range m.all() {
					if *v < below {
						k = strings.Clone(k)
						require.True(t, m.delete(k))
						delete(model, k)
					}
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(model), m.len())
				for k, v := range model {
					require.NotNil(t, m.get(k), k)
					require.Equal(t, v, *m.get(k))
				}
				seen := 0
				for k, v := range m.all() {
					require.Equal(t, model[k], *v)
					seen++
				}
				require.Equal(t, len(model), seen)
				require.Nil(t, m.get("absent"))
			},
		})
	})
}

// TestKeyMapShrinksItsArena: keys that come and go leave nothing behind.
func TestKeyMapShrinksItsArena(t *testing.T) {
	m := newKeyMap[uint64]()
	for i := range 1_000_000 {
		m.put(fmt.Sprint("key-", i))
		if i >= 100 {
			m.delete(fmt.Sprint("key-", i-100))
		}
	}
	require.Equal(t, 100, m.len())
	require.Less(t, m.size, 4<<arenaBits)
	require.LessOrEqual(t, m.made, uint32(101))
}

// BenchmarkKeyMap compares it with Go's own: time and memory for each key of as
// many as an agent has.
func BenchmarkKeyMap(b *testing.B) {
	const n = 500_000
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
	}
	measure := func(b *testing.B, fill func() any) {
		for b.Loop() {
			before := heapInUse()
			m := fill()
			b.ReportMetric(float64(heapInUse()-before)/n, "B/key")
			runtime.KeepAlive(m)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
	}
	b.Run("keyMap", func(b *testing.B) {
		measure(b, func() any {
			m := newKeyMap[mirrored]()
			for _, k := range keys {
				v, _ := m.put(k)
				v.hash++
			}
			return m
		})
	})
	b.Run("map", func(b *testing.B) {
		measure(b, func() any {
			m := map[string]mirrored{}
			for _, k := range keys {
				v := m[k]
				v.hash++
				m[strings.Clone(k)] = v
			}
			return m
		})
	})
}

func heapInUse() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
