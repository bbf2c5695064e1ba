// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"fmt"
	"sync"
)

// ids knows which cluster uses which ID. A cluster holds its ID from its first
// connection until its state is drained, connected or not: identities carry the
// ID, and two clusters with the same one would grant each other's rights.
// It is safe for concurrent use.
type ids struct {
	mu      sync.Mutex
	holders map[uint32]string
	freed   chan struct{}
}

func newIDs() *ids {
	return &ids{holders: map[uint32]string{}, freed: make(chan struct{})}
}

// reserve gives an ID to a cluster, which may have it already. If another one
// has it, it fails, and freed is closed when there is reason to try again.
func (i *ids) reserve(id uint32, cluster string) (freed <-chan struct{}, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if holder, ok := i.holders[id]; ok && holder != cluster {
		return i.freed, fmt.Errorf("cluster ID %d is used by cluster %q", id, holder)
	}
	i.holders[id] = cluster
	return nil, nil
}

// release frees an ID; of one that the cluster doesn't hold it does nothing.
func (i *ids) release(id uint32, cluster string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.holders[id] != cluster {
		return
	}
	delete(i.holders, id)
	close(i.freed)
	i.freed = make(chan struct{})
}
