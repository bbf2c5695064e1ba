// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"crypto/sha256"
	"log/slog"
	"os"
	"sync"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// SharedConnections has clusters of the same etcd configuration share a
// connection. It is for an agent: where a KVStoreMesh is in between, all its
// clusters have the local etcd's configuration, and a connection for each of 510 of
// them takes 63 MiB of that etcd's memory, for one agent.
var SharedConnections = cell.Provide(func() *sharing { return &sharing{} })

// sharing in a hive means SharedConnections.
type sharing struct{}

// clients are the etcd clients of all remote clusters. Its methods are safe for
// concurrent use.
type clients struct {
	log    *slog.Logger
	open   func(path string) (*etcd.Client, error)
	shared bool

	mu sync.Mutex
	// current has, by the content of a configuration, the client that whoever has
	// the same one is given.
	current map[configHash]*client
}

type configHash [sha256.Size]byte

// client is an etcd client, and by how many clusters it is used.
type client struct {
	*etcd.Client
	config configHash
	users  int // guarded by clients.mu
}

func newClients(log *slog.Logger, shared bool, open func(path string) (*etcd.Client, error)) *clients {
	return &clients{log: log, open: open, shared: shared, current: map[configHash]*client{}}
}

// take gives a client for a configuration file: one that others use as well, or a
// new one, which reads the file and those that it names. It is to be given back.
func (c *clients) take(path string) (*client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := hashOf(path)
	if of, ok := c.current[before]; ok && known {
		of.users++
		return of, nil
	}
	opened, err := c.open(path)
	if err != nil {
		return nil, err
	}
	of := &client{Client: opened, config: before, users: 1}
	// Only if it is the content which was hashed that was read.
	if after, ok := hashOf(path); c.shared && known && ok && after == before {
		c.current[before] = of
	}
	return of, nil
}

// hashOf is false for a file that can't be read.
func hashOf(path string) (configHash, bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return configHash{}, false
	}
	return sha256.Sum256(content), true
}

// retire keeps a client from being given to others: a session over it ended, and
// the next one is to begin with a new one. Those who have it keep it.
func (c *clients) retire(of *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current[of.config] == of {
		delete(c.current, of.config)
	}
}

// giveBack closes a client that nobody uses any more.
func (c *clients) giveBack(of *client) {
	c.mu.Lock()
	of.users--
	last := of.users == 0
	if last && c.current[of.config] == of {
		delete(c.current, of.config)
	}
	c.mu.Unlock()
	if !last {
		return
	}
	if err := of.Close(); err != nil {
		c.log.Warn("Closing connection to remote clusters failed", "error", err)
	}
}
