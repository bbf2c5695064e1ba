// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache"
)

var (
	// ErrUnsupported says that this kernel lacks a feature, which the error names, or
	// doesn't permit us to use it.
	ErrUnsupported = errors.New("the kernel can't signal misses in the ipcache")

	// ErrInUse says that another process has the directory.
	ErrInUse = ipcache.ErrInUse

	// ErrForeignPin says that something is pinned there that isn't ours.
	ErrForeignPin = errors.New("that isn't what belongs there")

	// ErrClosed is returned by what a Kernel can't do any longer after Close.
	ErrClosed = errors.New("the miss signals are closed")

	// ErrNoRoom says that there are more pod CIDRs than the programs can look at.
	ErrNoRoom = errors.New("there is no room for them")

	// ErrReading says that the signals are being read already.
	ErrReading = errors.New("the signals are being read by someone else")
)

// unpermitted makes an error of a process without the capabilities, or of a kernel
// without BPF, recognisable.
func unpermitted(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
