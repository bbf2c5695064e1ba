// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cilium/statedb"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// askTimeout bounds one question to the API server.
	askTimeout = 5 * time.Second
	// askFirst and askLast bound the pauses between two of them, while no known
	// backend answers: 5,000 agents whose cache is away altogether then ask some 80
	// times a second, for what an API server has in memory.
	askFirst = time.Second
	askLast  = time.Minute
)

// directory knows the replicas of the cache: the configured endpoints, and of those
// that are Services the backends. It belongs to the follower's job.
type directory struct {
	log      *slog.Logger
	cluster  wire.ClusterInfo
	stateDir string
	etcd     etcd.ClientConfig
	reader   reading.ServiceReader
	db       *statedb.DB
	services statedb.Table[*state.Service]

	static  []replica
	named   []*service
	backoff wait.Backoff
	nextAsk time.Time
}

func newAskBackoff() wait.Backoff {
	return wait.Backoff{Duration: askFirst, Factor: 2, Steps: 20, Cap: askLast}
}

// open reads the configuration, and finds the backends of Services: by one question
// to the API server, or else in what an earlier process has saved. It may be called
// again, since a file may be mounted late, or changed.
func (d *directory) open(ctx context.Context) error {
	endpoints, err := d.etcd.ConfiguredEndpoints()
	if err != nil {
		return err
	}
	known := map[string]*service{}
	for _, s := range d.named {
		known[s.endpoint] = s
	}
	d.static, d.named = nil, nil
	fresh := false
	for _, endpoint := range endpoints {
		s, ok := parseService(endpoint)
		switch {
		case !ok:
			d.static = append(d.static, replica{endpoint: endpoint, address: addressOf(endpoint)})
			continue
		case known[s.endpoint] != nil:
			s = known[s.endpoint]
		default:
			fresh = true
		}
		d.named = append(d.named, s)
	}
	if !fresh {
		return nil
	}
	err = d.askPaced(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if d.stateDir != "" {
		if loadErr := loadBackends(d.stateDir, d.cluster, d.named); loadErr != nil {
			d.log.Warn("There are no backends of an earlier process", "error", loadErr)
		}
	}
	if len(d.replicas()) == 0 {
		return err
	}
	d.log.Warn("Using the backends of the cache that an earlier process has saved, since they couldn't be read", "error", err)
	return nil
}

// replicas are all that are known.
func (d *directory) replicas() []replica {
	out := append([]replica(nil), d.static...)
	for _, s := range d.named {
		out = append(out, s.replicas()...)
	}
	return out
}

// ask asks the API server for the backends of all Services.
func (d *directory) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	changed := false
	var errs []error
	for _, s := range d.named {
		of, err := s.ask(ctx, d.reader)
		if err != nil {
			errs = append(errs, err)
		}
		changed = changed || of
	}
	d.save(changed)
	return errors.Join(errs...)
}

// askPaced is ask where nothing answers, and says when it may be done again.
func (d *directory) askPaced(ctx context.Context) error {
	d.nextAsk = time.Now().Add(rand.N(2 * d.backoff.Step()))
	return d.ask(ctx)
}

// failed is called when no known replica answers. It asks the API server again,
// unless it did a short while ago; the error says why nothing came of it.
func (d *directory) failed(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	if len(d.named) == 0 || time.Now().Before(d.nextAsk) {
		return nil
	}
	if err := d.askPaced(ctx); err != nil {
		return fmt.Errorf("looking for other replicas: %w", err)
	}
	return nil
}

// answered is called when a replica answers: the next failure is a new one.
func (d *directory) answered() { d.backoff = newAskBackoff() }

// follow takes over what the cache says of its own Services.
func (d *directory) follow() {
	changed, txn := false, d.db.ReadTxn()
	for _, s := range d.named {
		changed = s.follow(txn, d.services, d.cluster.Name) || changed
	}
	d.save(changed)
}

func (d *directory) save(changed bool) {
	if !changed || d.stateDir == "" {
		return
	}
	if err := saveBackends(d.stateDir, d.cluster, d.named); err != nil {
		d.log.Warn("A start without the API server won't find the cache", "error", err)
	}
}
