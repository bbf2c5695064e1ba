// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"maps"
	"slices"
	"sync"
)

// problems are the rows that couldn't be encoded, by key. Only the exporter's job
// changes them, so that it needs the lock for that alone; others read with it.
type problems struct {
	mu    sync.Mutex
	byKey map[string]error
}

func newProblems() *problems { return &problems{byKey: map[string]error{}} }

// add says whether that is news.
func (p *problems) add(key string, err error) (news bool) {
	old := p.byKey[key]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byKey[key] = err
	return old == nil || old.Error() != err.Error()
}

// drop is called for each row that could be encoded: without problems it costs nothing.
func (p *problems) drop(key string) {
	if _, had := p.byKey[key]; !had {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byKey, key)
}

// first names the first one, by key.
func (p *problems) first() (count int, example string, err error) {
	if len(p.byKey) == 0 {
		return 0, "", nil
	}
	example = slices.Min(slices.Collect(maps.Keys(p.byKey)))
	return len(p.byKey), example, p.byKey[example]
}

// of and count are safe to call from any goroutine.
func (p *problems) of(key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byKey[key]
}

func (p *problems) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byKey)
}
