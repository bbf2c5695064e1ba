// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import "hash/maphash"

// skipped is the set of the keys that a source has and that aren't taken, being
// regional elsewhere. It is there to be counted, so that it has hashes in place of
// keys: of a million keys two are one with a probability of 3 in 100 million, and no
// source can bring that about, since it doesn't know the seed.
//
// It takes some 23 bytes a key (BenchmarkSkipped), twice that while a list is under
// way.
type skipped struct {
	seed maphash.Seed
	// keys that were told of in the present pass, or since; and before, while it isn't
	// complete. No key is in both.
	now, before map[uint64]struct{}
}

func newSkipped() *skipped { return &skipped{seed: maphash.MakeSeed()} }

func (s *skipped) len() int { return len(s.now) + len(s.before) }

// set says whether a key is skipped.
func (s *skipped) set(key string, skip bool) {
	if !skip && s.len() == 0 {
		return // a source in our region, as a rule
	}
	hash := maphash.String(s.seed, key)
	delete(s.before, hash)
	if !skip {
		delete(s.now, hash)
		return
	}
	if s.now == nil {
		s.now = make(map[uint64]struct{})
	}
	s.now[hash] = struct{}{}
}

// beginPass is called when a list begins, maybe in place of one that ended halfway,
// and endPass when it is complete: what wasn't told of by then is gone.
func (s *skipped) beginPass() {
	if len(s.before) == 0 {
		s.now, s.before = nil, s.now
		return
	}
	for hash := range s.now {
		s.before[hash] = struct{}{}
	}
	s.now = nil
}

func (s *skipped) endPass() { s.before = nil }

func (s *skipped) clear() { s.now, s.before = nil, nil }
