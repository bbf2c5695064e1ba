// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// stopPatience is how long a process may take to end by itself.
const stopPatience = 10 * time.Second

// process is one part of one cluster. It is started again when it ends, so that
// it can be killed and seen to recover.
type process struct {
	name string // "cluster/part"
	args []string
	env  []string // beside our own environment
	log  string
	// ended is told when the process ended by itself, and started when it was
	// started again.
	ended   func(name string, pid int, reason error)
	started func(name string, pid int)

	mu  sync.Mutex
	pid int
}

// PID is that of the running process; 0 is none.
func (p *process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

func (p *process) setPID(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
}

// run keeps the process running until ctx ends, and ends it then.
func (p *process) run(ctx context.Context) error {
	output, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", p.name, err)
	}
	defer output.Close()
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 6, Cap: 3 * time.Second}
	for again := false; ; again = true {
		began := time.Now()
		reason, err := p.once(ctx, output, again)
		if err != nil || ctx.Err() != nil {
			return err
		}
		p.ended(p.name, 0, reason)
		if time.Since(began) > 10*time.Second {
			backoff.Duration, backoff.Steps = 100*time.Millisecond, 6
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff.Step()):
		}
	}
}

// once runs the process to its end, and says why it ended.
func (p *process) once(ctx context.Context, output *os.File, again bool) (reason, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	cmd := exec.CommandContext(ctx, self, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopPatience
	// Ctrl-C is ours to handle; and nothing outlives us, however we end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.setPID(cmd.Process.Pid)
	defer p.setPID(0)
	if again {
		p.started(p.name, cmd.Process.Pid)
	}
	reason = cmd.Wait()
	if reason == nil {
		reason = errors.New("it ended by itself")
	}
	return reason, nil
}
