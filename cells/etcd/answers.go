// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"time"

	"github.com/cilium/hive/cell"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

const (
	// askInterval is the pause between questions to an etcd that answers, and askAgain
	// to one that doesn't.
	askInterval, askAgain = 15 * time.Second, time.Second
	// askTimeout is how long an answer may take.
	askTimeout = 10 * time.Second
)

// healthKey is what is asked for: a key that isn't there, by the name that etcd's own
// health check has for it.
const healthKey = "health"

// ask asks etcd something now and then until ctx ends. A Writer that has nothing to
// write finds out by nothing else that its etcd is away, or hangs. What comes of it is in
// WriterStats.Silent, and so in the health of writerHealth.
func (w *Writer) ask(ctx context.Context, health cell.Health) error {
	health.OK("Asking etcd now and then; that it doesn't answer is told by " + writerHealth)
	for {
		pause, silent := askInterval, ""
		_, err := w.client.get(ctx, askTimeout, &pb.RangeRequest{Key: []byte(healthKey), Serializable: true})
		if ctx.Err() != nil || w.client.isClosed() {
			return nil
		}
		// Whatever else it says, for instance that this may not be read, is an answer.
		if code := CodeOf(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
			pause, silent = askAgain, err.Error()
		}
		w.mu.Lock()
		w.stats.Silent = silent
		w.mu.Unlock()
		if sleep(ctx, pause) != nil {
			return nil
		}
	}
}
