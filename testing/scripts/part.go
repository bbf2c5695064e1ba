// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
)

// part is one hive of a mesh. It can be stopped and started again, as a new hive
// with the same flags, like a pod that is restarted.
type part struct {
	name  string // "c1/exporter"
	log   *slog.Logger
	cells []cell.Cell
	args  []string
	hive  *hive.Hive // nil while it doesn't run
}

// start runs the hive and gives its commands.
func (p *part) start(ctx context.Context) (map[string]script.Cmd, error) {
	if p.hive != nil {
		return nil, fmt.Errorf("%s runs already", p.name)
	}
	h := hive.New(p.cells...)
	flags := pflag.NewFlagSet(p.name, pflag.ContinueOnError)
	h.RegisterFlags(flags)
	if err := flags.Parse(p.args); err != nil {
		return nil, fmt.Errorf("flags of %s: %w", p.name, err)
	}
	cmds, err := h.ScriptCommands(p.log)
	if err != nil {
		return nil, fmt.Errorf("assembling %s: %w", p.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = h.Start(p.log, ctx)
	p.hive = h
	if err != nil {
		// What was started before the failure goes on until it is stopped.
		return nil, errors.Join(fmt.Errorf("starting %s: %w", p.name, err), p.stop())
	}
	// A script starts and stops its parts by other commands.
	maps.DeleteFunc(cmds, func(name string, _ script.Cmd) bool {
		return name == "hive/start" || name == "hive/stop"
	})
	return cmds, nil
}

// stop stops the hive, if it runs.
func (p *part) stop() error {
	if p.hive == nil {
		return nil
	}
	h := p.hive
	p.hive = nil
	// Not the script's context: what was started is stopped in any case.
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := h.Stop(p.log, ctx); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	return nil
}
