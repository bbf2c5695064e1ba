// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// insist asks something of the local etcd until it answers, or ctx ends. That our
// own etcd is away is no reason to give up a connection to another cluster, nor
// to leave undone what nobody will come back to.
func insist(ctx context.Context, log *slog.Logger, ask func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second}
	for failed := false; ; failed = true {
		err := ask(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, etcd.ErrClosed) {
			return err
		}
		if !failed {
			log.Warn("Reading from the local etcd failed, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backoff.Step()):
		}
	}
}

// insistent is insist for a job, whose health says meanwhile what can't be done. It fails
// only because the process stops, which is no failure of the job.
func insistent(ctx context.Context, log *slog.Logger, health cell.Health, problem string, ask func(context.Context) error) error {
	return insist(ctx, log, func(ctx context.Context) error {
		err := ask(ctx)
		if err != nil && ctx.Err() == nil {
			health.Degraded(problem, err)
		}
		return err
	})
}
