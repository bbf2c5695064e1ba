// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// mountBPFFS mounts a BPF file system at root unless there is one: it is where
// pinned maps live, and not every host mounts it.
func mountBPFFS(log *slog.Logger, root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("making the mount point of the BPF file system: %w", err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(root, &stat); err != nil {
		return fmt.Errorf("looking at the file system at %s: %w", root, err)
	}
	if stat.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	// A mount hides what is below: /sys/fs/bpf without one is empty.
	if entries, err := os.ReadDir(root); err != nil {
		return fmt.Errorf("looking into the mount point of the BPF file system: %w", err)
	} else if len(entries) > 0 {
		return fmt.Errorf("--%s=%q: not mounting the BPF file system over a directory that has files", flagRoot, root)
	}
	if err := unix.Mount("bpf", root, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mounting the BPF file system at %s: %w", root, err)
	}
	log.Info("Mounted the BPF file system", "path", root)
	return nil
}
