// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
)

// Cell provides the client of the local cluster's etcd and the one Writer on it.
var Cell = cell.Module(
	"etcd",
	"Client of the local etcd and the group-commit writer",

	ClientParts,
	WriterParts,
)

// ClientParts and WriterParts are the two halves of Cell, for a hive whose Writer has
// another lifecycle than its client.
var (
	ClientParts = cell.Group(
		cell.Config(DefaultConfig),
		cell.Provide(newLocalClient), // opened when the hive starts
	)
	WriterParts = cell.Provide(newLocalWriter)
)

// PrivateCell provides the client and the Writer to the module around it alone, which
// also brings the Config: for a hive with more etcds than one.
var PrivateCell = cell.ProvidePrivate(newLocalClient, newLocalWriter)

// configPatience is the pause between looks for a configuration file that isn't
// there yet: a Secret may be mounted after the pod starts.
const configPatience = time.Second

type clientParams struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Config    Config
	Own       *OwnServer `optional:"true"` // of OwnServerCell
}

func newLocalClient(p clientParams) *Client {
	log, c := p.Log, prepareClient(p.Log, ClientConfig{})
	p.Lifecycle.Append(cell.Hook{
		OnStart: func(ctx cell.HookContext) error {
			cfg := p.Config
			if p.Own != nil && p.Own.runs() {
				cfg = cfg.at(p.Own.localURL())
			}
			var err error
			if c.cfg, err = cfg.Client(); err != nil {
				return err
			}
			for {
				err := c.open()
				if err == nil || c.cfg.ConfigPath == "" {
					return err
				}
				// It may be mounted later, or be half-written now.
				log.Warn("Waiting for a good etcd configuration", "error", err)
				if sleep(ctx, configPatience) != nil {
					return err
				}
			}
		},
		OnStop: func(cell.HookContext) error { return c.Close() },
	})
	return c
}

// writerHealth is the scope of health in which the Writer's module says whether the etcd
// takes what is written to it, and answers.
const writerHealth = "writer"

type writerParams struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Health    cell.Health
	Client    *Client
	Options   WriterOptions `optional:"true"`
}

func newLocalWriter(p writerParams) *Writer {
	w := newWriter(p.Log, p.Client, p.Options)
	p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		w.configure(p.Client.cfg) // known since the client's own start
		return nil
	}})
	p.Jobs.Add(
		job.OneShot("etcd-writer", func(ctx context.Context, health cell.Health) error {
			health.OK("Writing; what fails is told by " + writerHealth)
			return w.Run(ctx)
		}),
		job.OneShot("etcd-answers", w.ask),
		job.Timer("etcd-writer-health", w.reportHealth(p.Health.NewScope(writerHealth)), time.Second),
	)
	return w
}

// reportHealth makes the Writer's failures visible as degraded health. They aren't errors
// of the timer: the hive would log each second of them.
func (w *Writer) reportHealth(health cell.Health) job.TimerFunc {
	well := false
	return func(context.Context) error {
		stats := w.Stats()
		switch {
		case stats.LastError != "":
			well = false
			health.Degraded("Writing to etcd fails",
				fmt.Errorf("%d operations wait, %d of them refused by etcd: %s", stats.Pending, stats.Refused, stats.LastError))
		case stats.Silent != "":
			well = false
			health.Degraded("Etcd doesn't answer", errors.New(stats.Silent))
		case !well:
			well = true
			health.OK("etcd takes what is written")
		}
		return nil
	}
}
