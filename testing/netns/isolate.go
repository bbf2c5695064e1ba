// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedEnv tells a process that it is in namespaces of its own.
const isolatedEnv = "WAGGLE_NETNS_ISOLATED"

// Isolated says whether Isolate has got this process into namespaces of its own.
func Isolated() bool { return os.Getenv(isolatedEnv) != "" }

// Isolate runs this program once more, with the same arguments, in a network namespace
// and a mount namespace of its own, and gives its exit code: for programs all of whose
// threads have to be there, since an agent works in the namespace that it is started in,
// and mounts its BPF file system. In that process it calls run, and gives what that
// gives.
//
// The error is [ErrNotPermitted] where that can't be done. The program ends when this
// process does.
func Isolate(run func() int) (code int, err error) {
	if Isolated() {
		if err := errors.Join(prepare(), forward()); err != nil {
			return 1, err
		}
		return run(), nil
	}
	self, err := os.Executable()
	if err != nil {
		return 1, fmt.Errorf("looking for our own program file: %w", err)
	}
	// The death signal comes when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	case errors.Is(err, unix.EPERM):
		return 1, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	default:
		return 1, fmt.Errorf("running this program in namespaces of its own: %w", err)
	}
}
