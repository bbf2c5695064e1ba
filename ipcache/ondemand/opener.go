// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// InKernel is the Opener of the kernel itself.
type InKernel struct{}

// Open implements Opener.
func (InKernel) Open(log *slog.Logger, cfg bpf.Config, pods, devices bpf.Patterns) (Opened, error) {
	kernel, err := bpf.Open(log, cfg)
	if err != nil {
		return Opened{}, err
	}
	return Opened{
		Kernel:     kernel,
		Interfaces: bpf.NewInterfaces(log, kernel, pods, devices).Run,
		Close:      kernel.Close,
	}, nil
}

// Remove implements Opener.
func (InKernel) Remove(log *slog.Logger, dir string) error { return bpf.Remove(log, dir) }

// NotInKernel is the Opener of builds without BPF.
type NotInKernel struct{}

// Open implements Opener: it can't.
func (NotInKernel) Open(*slog.Logger, bpf.Config, bpf.Patterns, bpf.Patterns) (Opened, error) {
	return Opened{}, fmt.Errorf("%w: this build has no BPF", bpf.ErrUnsupported)
}

// Remove implements Opener: it can't, and says so if there is something.
func (NotInKernel) Remove(log *slog.Logger, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		log.Warn("This build has no BPF: the programs that another one has left stay in the kernel", "path", dir)
	}
	return nil
}
