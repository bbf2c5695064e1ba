// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/hive/script"
	"golang.org/x/tools/txtar"

	"github.com/waggle-mesh/waggle/ipcache"
)

// Engine runs one script on the Mesh.
func (m *Mesh) Engine() *script.Engine {
	conds := script.DefaultConds()
	conds["bpf"] = script.OnceCondition("the kernel lets us make BPF maps", m.bpfPermitted)
	conds["faults"] = script.BoolCondition("connections are cut at random", m.options.Faults > 0)
	return &script.Engine{
		Cmds:             m.cmds,
		Conds:            conds,
		RetryInterval:    10 * time.Millisecond,
		MaxRetryInterval: 200 * time.Millisecond,
	}
}

// bpfPermitted finds out by making a map.
func (m *Mesh) bpfPermitted() (bool, error) {
	probe, err := ipcache.OpenBPF(slog.New(slog.DiscardHandler),
		ipcache.BPFConfig{Root: bpfRoot, Dir: m.bpfDir + "-probe", Capacity: 1})
	if errors.Is(err, ipcache.ErrBPFNotPermitted) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("trying BPF: %w", err)
	}
	return true, probe.Close()
}

// RunFile runs the script in a txtar file, in a temporary directory, and writes
// what happens to out as it does. The error is that of the first command that
// went other than the script says, and names its line; a script that skips itself
// is none. Whatever the script has started is stopped when RunFile returns.
func RunFile(ctx context.Context, path string, out io.Writer, options Options) (err error) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		return fmt.Errorf("reading the script: %w", err)
	}
	work, err := os.MkdirTemp("", "waggle-script-")
	if err != nil {
		return fmt.Errorf("making the script's directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	state, err := script.NewState(ctx, work, nil)
	if err != nil {
		return fmt.Errorf("preparing the script: %w", err)
	}
	if err := prepare(state, work, archive); err != nil {
		return fmt.Errorf("preparing the script: %w", err)
	}
	mesh := New(options)
	defer func() { err = errors.Join(err, mesh.Close()) }()
	engine := mesh.Engine()
	engine.Cmds["skip"] = skipCommand()
	err = engine.Execute(state, path, bufio.NewReader(bytes.NewReader(archive.Comment)), out)
	err = errors.Join(err, state.CloseAndWait(out))
	if skip := (skipped{}); errors.As(err, &skip) {
		_, err = fmt.Fprintf(out, "skipped: %s\n", skip.reason)
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) && mesh.LastFailure() != nil {
		err = fmt.Errorf("%w; the last failure was: %w", err, mesh.LastFailure())
	}
	return err
}

// prepare gives a script its files and its variables WORK and TMPDIR.
func prepare(state *script.State, work string, archive *txtar.Archive) error {
	temporary := filepath.Join(work, "tmp")
	return errors.Join(
		os.MkdirAll(temporary, 0o755),
		state.Setenv("WORK", work),
		state.Setenv("TMPDIR", temporary),
		state.ExtractFiles(archive),
	)
}

// skipped is the error by which a script says that it can't run here.
type skipped struct{ reason string }

func (s skipped) Error() string { return "skipped: " + s.reason }

func skipCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "end the script, which can't run here", Args: "[reason]"},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			return nil, skipped{strings.Join(args, " ")}
		},
	)
}

// ListCommands writes what a script can do from its first line on: the commands
// that belong to an etcd, a cluster or a part come with those.
func ListCommands(out io.Writer) error {
	engine := New(Options{Log: slog.New(slog.DiscardHandler)}).Engine()
	engine.Cmds["skip"] = skipCommand()
	return engine.ListCmds(out, true, "")
}
