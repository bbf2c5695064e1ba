// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

// This file is a Scope's part of the plan. All of it is under the Writer's lock.

// keptOps is the size from which on an empty map of operations is given up: that
// of a page of a list is megabytes, and isn't needed again for a long time.
const keptOps = 256

// scopeOps are the operations on a Scope's keys that aren't committed.
type scopeOps struct {
	// ops has the last operation on each key; see operation.under.
	ops map[string]*operation
	// peak is the largest that ops was.
	peak int
	// groups are those that haven't ended, in order; see plan.await.
	groups []*group
	// held is the number of keys that are in etcd, or will be, once all
	// operations are committed.
	held int
}

func (s *scopeOps) setOp(op *operation) {
	if s.ops == nil {
		s.ops = make(map[string]*operation)
	}
	s.ops[op.key] = op
	s.peak = max(s.peak, len(s.ops))
}

func (s *scopeOps) unsetOp(key string) {
	delete(s.ops, key)
	if len(s.ops) == 0 && s.peak > keptOps {
		s.ops, s.peak = nil, 0
	}
}

// countHeld takes note that a key which was (not) to exist now is (not).
func (s *scopeOps) countHeld(was, is bool) {
	switch {
	case was && !is:
		s.held--
	case is && !was:
		s.held++
	}
}

// openGroup is the group that operations are queued into.
func (s *scopeOps) openGroup() *group {
	if n := len(s.groups); n > 0 && len(s.groups[n-1].done) == 0 {
		return s.groups[n-1]
	}
	g := &group{}
	s.groups = append(s.groups, g)
	return g
}

// endGroups calls those who waited for groups that have ended.
func (s *scopeOps) endGroups() {
	for len(s.groups) > 0 && s.groups[0].left == 0 {
		ended := s.groups[0]
		s.groups[0] = nil
		if s.groups = s.groups[1:]; len(s.groups) == 0 {
			s.groups = nil
		}
		for _, done := range ended.done {
			done()
		}
	}
}
