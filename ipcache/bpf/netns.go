// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// inNetNS does something in the network namespace of the interfaces.
func (c Config) inNetNS(do func() error) (err error) {
	if c.NetNS == "" {
		return do()
	}
	target, err := netns.GetFromPath(c.NetNS)
	if err != nil {
		return fmt.Errorf("opening the network namespace %s: %w", c.NetNS, err)
	}
	defer target.Close()

	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	defer own.Close()
	if err := netns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("going to the network namespace %s: %w", c.NetNS, unpermitted(err))
	}
	defer func() {
		if back := netns.Set(own); back != nil {
			// The thread stays locked, and ends with its goroutine.
			err = errors.Join(err, fmt.Errorf("coming back from the network namespace %s: %w", c.NetNS, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return do()
}
