// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package process runs the parts of a mesh as child processes of this one, with
// what the kernel accounts to each.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// stopPatience is how long a process has to end by itself after SIGTERM.
const stopPatience = time.Minute

// Process is a child process in a process group of its own, so that a Ctrl-C at
// the terminal is this process's alone to handle. The kernel kills it when this
// process dies. Its methods are safe for concurrent use.
type Process struct {
	name    string
	cmd     *exec.Cmd
	logPath string
	began   time.Time
	done    chan struct{}
	err     error // how it ended; once done is closed
}

// Start starts a process whose output goes to the file <name>.log in dir.
// environ is added to this process's environment. The error is that of the start.
func Start(name, dir string, argv, environ []string) (*Process, error) {
	logPath := filepath.Join(dir, name+".log")
	output, err := os.Create(logPath)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer output.Close() // the child has its own descriptor
	p := &Process{name: name, logPath: logPath, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), environ...)
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the child,
		// not the process: this one stays for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p.began = time.Now()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

// Name is the name that the process was started under.
func (p *Process) Name() string { return p.name }

// PID is the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Began is the time right before the process was started.
func (p *Process) Began() time.Time { return p.began }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended; nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	reason := p.err
	if reason == nil {
		reason = errors.New("exit status 0")
	}
	return fmt.Errorf("%s ended: %w", p.name, reason)
}

// logTail is how much of a log is shown.
const logTail = 4096

// LogTail is the end of the process's output, to be shown when something failed.
func (p *Process) LogTail() string {
	log, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	if len(log) > logTail {
		log = log[len(log)-logTail:]
		if _, whole, ok := bytes.Cut(log, []byte("\n")); ok {
			log = whole
		}
	}
	return string(log)
}

// Stop ends the process: by SIGTERM, and if it hasn't ended within stopPatience,
// by SIGKILL to its process group. The error says that it had to be killed. A
// process that has ended is left alone.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	p.Kill()
	return fmt.Errorf("stopping %s: it was killed since it didn't end within %s\n%s", p.name, stopPatience, p.LogTail())
}

// Pause stops the process where it is, until Resume or Kill.
func (p *Process) Pause() error { return p.signal("pausing", syscall.SIGSTOP) }

// Resume undoes Pause.
func (p *Process) Resume() error { return p.signal("resuming", syscall.SIGCONT) }

func (p *Process) signal(doing string, sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s %s: %w", doing, p.name, err)
	}
	return nil
}

// Kill ends the process and its process group at once, and waits until it has ended.
func (p *Process) Kill() {
	select {
	case <-p.done: // its ID may be another's by now
		return
	default:
	}
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // an error means that it just ended
	<-p.done
}
