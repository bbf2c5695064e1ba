// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/hive/cell"
	clientyaml "go.etcd.io/etcd/client/v3/yaml"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// Reasons to end a session that are no failures.
var (
	errConfigChanged = errors.New("configuration changed")
	errRemoved       = errors.New("configuration removed")
	errExpired       = errors.New("away for longer than the cache's TTL")
)

const (
	backoffFirst = 200 * time.Millisecond
	backoffLast  = 30 * time.Second
)

// cluster is one remote cluster. Its life is one job, which goes from session
// to session; a session is one connection (session.go). What happens outside
// of the job (another configuration, the removal, the TTL) is noted down and
// interrupts what the job does.
type cluster struct {
	name    string
	path    string // of its configuration file
	log     *slog.Logger
	cfg     *settings
	ids     *ids
	handler Handler
	status  *status
	// current is the connection that Run has, for those who read by themselves.
	current atomic.Pointer[Connection]

	mu sync.Mutex
	// noted is what happened since the job last looked.
	noted note
	// interrupt ends what the job does.
	interrupt context.CancelCauseFunc
	// hash is that of the configuration in use.
	hash [sha256.Size]byte

	// What follows belongs to the job.
	client *client
	id     uint32   // 0 until Run was called once
	run    *running // nil while Run doesn't run
	// known: the Handler may know things that a revocation would take away.
	known bool
	// away is the timer of the TTL, nil while the cluster is there.
	away clock.Timer
}

// note is what the job has to react to.
type note struct{ changed, removed, expired bool }

// configure takes the configuration file as it is now. One that can't be used
// is reported, and changes nothing.
func (c *cluster) configure(f file) {
	err := f.err
	if err == nil {
		err = checkFile(c.path)
	}
	if err == nil {
		c.mu.Lock()
		if f.hash != c.hash {
			c.hash = f.hash
			c.noted.changed = true
			c.interruptLocked(errConfigChanged)
		}
		c.mu.Unlock()
	}
	c.status.config(err)
}

// checkFile says what is wrong with an etcd configuration and the files that it
// names, without connecting.
func checkFile(path string) error {
	config, err := clientyaml.NewConfig(path)
	if err == nil && len(config.Endpoints) == 0 {
		err = errors.New("it names no endpoints")
	}
	if err != nil {
		return fmt.Errorf("reading etcd configuration %q: %w", path, err)
	}
	return nil
}

// remove has the job drain the cluster and end.
func (c *cluster) remove() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted.removed = true
	c.interruptLocked(errRemoved)
}

// expire is called when the TTL has passed.
func (c *cluster) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted.expired = true
	c.interruptLocked(errExpired)
}

func (c *cluster) interruptLocked(cause error) {
	if c.interrupt != nil {
		c.interrupt(cause)
	}
}

// next gives what was noted, and the context of the job's next step, which ends
// at whatever is noted from now on.
func (c *cluster) next(ctx context.Context) (note, context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	noted := c.noted
	c.noted = note{}
	c.interruptLocked(context.Canceled) // releases the last one
	ctx, c.interrupt = context.WithCancelCause(ctx)
	return noted, ctx
}

// live is the cluster's job. It is true when the cluster was removed, and false
// when ctx ended.
func (c *cluster) live(ctx context.Context, health cell.Health) (removed bool) {
	c.status.reportTo(health)
	defer c.end()
	newBackoff := func() wait.Backoff {
		return wait.Backoff{Duration: backoffFirst, Factor: 2, Jitter: 0.5, Steps: 10, Cap: backoffLast}
	}
	backoff := newBackoff()
	var delay time.Duration
	for {
		noted, step := c.next(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case noted.removed:
			c.drain(ctx)
			return true
		case noted.expired:
			c.revoke(ctx)
		}
		if noted.changed {
			delay, backoff = 0, newBackoff()
		}
		if !sleep(step, delay) {
			continue
		}
		started := c.cfg.clock.Now()
		err := c.session(ctx, step)
		c.gone()
		if step.Err() != nil {
			continue // interrupted: next says by what
		}
		c.status.lost(err)
		if c.cfg.clock.Since(started) > backoffLast {
			backoff = newBackoff()
		}
		delay = backoff.Step()
	}
}

// end releases what the job holds.
func (c *cluster) end() {
	c.back()
	c.mu.Lock()
	c.interruptLocked(context.Canceled)
	c.mu.Unlock()
	c.closeClient()
}

// drain takes away what is known of the cluster, which was removed.
func (c *cluster) drain(ctx context.Context) {
	c.log.Info("Removing remote cluster")
	c.back() // there is nothing left to revoke
	c.handler.Remove(ctx)
	c.ids.release(c.id, c.name)
	c.status.removed()
	c.log.Info("Remote cluster removed")
}

// gone starts the TTL, unless it runs already or has had its effect.
func (c *cluster) gone() {
	if c.cfg.cacheTTL > 0 && c.known && c.away == nil {
		c.away = c.cfg.clock.AfterFunc(c.cfg.cacheTTL, c.expire)
	}
}

// back stops the TTL.
func (c *cluster) back() {
	if c.away != nil {
		c.away.Stop()
		c.away = nil
	}
	c.mu.Lock()
	c.noted.expired = false
	c.mu.Unlock()
}

func (c *cluster) revoke(ctx context.Context) {
	c.log.Warn("Remote cluster is away for longer than the cache's TTL: revoking what sends traffic there",
		"ttl", c.cfg.cacheTTL)
	c.away, c.known = nil, false
	c.handler.Revoke(ctx)
	c.status.revoked()
}

// open gives a client of the configuration as it is now, and not the one that the
// last session had: what that one has read of files may be out of date. If the
// configuration can't be used by now, the last one still can.
func (c *cluster) open() (*etcd.Client, error) {
	last := c.client
	if last != nil {
		c.cfg.clients.retire(last)
	}
	client, err := c.cfg.clients.take(c.path)
	switch {
	case err == nil:
		c.closeClient()
		c.client = client
	case last == nil:
		return nil, err
	}
	c.status.config(err)
	return c.client.Client, nil
}

// closeClient gives the client back, if there is one.
func (c *cluster) closeClient() {
	if c.client != nil {
		c.cfg.clients.giveBack(c.client)
		c.client = nil
	}
}

// sleep waits for d, and is false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
