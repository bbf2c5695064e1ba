// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
)

// Remove takes away what an earlier process left in the directory: the programs come
// off their interfaces, and the maps go. It does nothing where there is nothing, and
// gives [ErrInUse] and [ErrForeignPin] as Open does.
func Remove(log *slog.Logger, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := checkPins(dir); err != nil {
		return err
	}
	links, err := removeLinks(filepath.Join(dir, linksName))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("looking into the directory of maps: %w", err)
	}
	for _, entry := range entries {
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("removing a map: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("removing the directory of maps: %w", err)
	}
	log.Info("Removed what signalled misses in the ipcache", "path", dir, "interfaces", links)
	return nil
}

// removeLinks detaches what is pinned in the directory, and says how much that was.
func removeLinks(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("looking for links: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if _, _, ok := parsePinName(entry.Name()); !ok {
			return 0, fmt.Errorf("the directory of links has %s: %w", path, ErrForeignPin)
		}
		// The last reference is the pin's: without it the program is off.
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return 0, fmt.Errorf("opening the link at %s: %w", path, err)
		}
		if err := errors.Join(l.Unpin(), l.Close()); err != nil {
			return 0, fmt.Errorf("removing the link at %s: %w", path, err)
		}
	}
	return len(entries), nil
}
