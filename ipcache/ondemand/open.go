// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

const (
	// directory is where our maps and links are pinned, below the agent's directory.
	directory = "ondemand"
	// openRetry is when it is tried again to open the kernel's side, and looked whether
	// there is another map to read: after a node's boot cilium-agent may be later than
	// this one, and it makes its map anew when its size changes.
	openRetry = 3 * time.Second
)

var (
	errReopening = errors.New("the kernel's side is being opened for another map")
	// errOnlyRead says that programs read a map into which nobody puts answers.
	errOnlyRead = errors.New("what is resolved doesn't get into it, and packets go on missing")
)

// chosenMap is the map that the programs are to read.
type chosenMap struct {
	path string
	// file tells maps apart that are pinned there one after the other; nil if there is
	// none.
	file os.FileInfo
}

func (c chosenMap) is(o chosenMap) bool {
	if c.file == nil || o.file == nil {
		return c.path == o.path && c.file == o.file
	}
	return c.path == o.path && os.SameFile(c.file, o.file)
}

// choose is the map that the flag names, or cilium-agent's where that is, else our own.
func (s *Service) choose() (chosenMap, error) {
	if path := s.with.Config.IPCacheMap; path != "" {
		return mapAt(path)
	}
	chosen, err := mapAt(filepath.Join(s.with.MapConfig.BPFRoot, ipcache.AgentMap))
	if err != nil {
		return chosenMap{}, fmt.Errorf("looking for the map of cilium-agent: %w", err)
	}
	if chosen.file != nil {
		return chosen, nil
	}
	if path, ok := s.with.Map.PinPath(); ok {
		return mapAt(path)
	}
	return chosenMap{}, fmt.Errorf("%w: the ipcache map isn't in the kernel, and --%s names no other", fs.ErrNotExist, flagIPCacheMap)
}

func mapAt(path string) (chosenMap, error) {
	file, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return chosenMap{}, err
	}
	return chosenMap{path, file}, nil
}

// written says whether this agent puts answers into a map, with the reason if it doesn't.
func (s *Service) written(chosen chosenMap) error {
	if s.with.InAgent && chosen.path == filepath.Join(s.with.MapConfig.BPFRoot, ipcache.AgentMap) {
		return nil
	}
	pin, ok := s.with.Map.PinPath()
	if !ok {
		return fmt.Errorf("programs read %s, and this agent's map isn't in the kernel: %w", chosen.path, errOnlyRead)
	}
	if own, err := mapAt(pin); err != nil || !own.is(chosenMap{pin, chosen.file}) {
		return fmt.Errorf("programs read %s, and this agent writes %s: %w", chosen.path, pin, errOnlyRead)
	}
	return nil
}

// dir is where our pins are, beside the map. Who has it locked may touch what is there.
func (s *Service) dir() string {
	if pin, ok := s.with.Map.PinPath(); ok {
		return filepath.Join(filepath.Dir(pin), directory)
	}
	return filepath.Join(s.with.MapConfig.BPFRoot, s.with.MapConfig.BPFMapDir, directory)
}

// remove takes away what earlier processes have left, whichever of them, unless one lives.
func (s *Service) remove() error {
	err := s.with.Opener.Remove(s.with.Log, s.dir())
	switch {
	case errors.Is(err, bpf.ErrInUse):
		s.with.Log.Info("On-demand resolution is off here, and another process has it on", "path", s.dir())
	case err != nil:
		// It is a burden, and no reason for not working.
		s.with.Log.Warn("On-demand resolution is off, and what an earlier process has left of it can't be removed", "error", err)
		s.with.Health.NewScope("kernel").Degraded("Programs of an earlier process are left", err)
	}
	return nil
}

// keepOpen is the job that opens the kernel's side where that couldn't be done at first,
// and opens it anew for another map. A kernel that can't isn't asked again; another
// process may end, and a map come up.
func (s *Service) keepOpen(ctx context.Context, health cell.Health) error {
	defer s.ready()
	health.OK("Looking after the kernel's side; how that is, is told by kernel")
	for pause(ctx, s.retry) {
		chosen, err := s.choose()
		switch {
		case s.kernel.isOpen():
			if err != nil || chosen.file == nil || chosen.is(s.chosen) {
				continue
			}
			s.with.Log.Info("Reading another ipcache map", "path", chosen.path)
			if err := s.kernel.close(errReopening); err != nil {
				s.with.Log.Warn("Closing the kernel's side failed", "error", err)
			}
		case errors.Is(s.failed, bpf.ErrUnsupported) && chosen.is(s.chosen):
			continue
		}
		if s.open(); s.kernel.isOpen() {
			s.engine.reopened()
		}
	}
	return nil
}

// open opens the kernel's side, or has health say why it isn't open. Without it all else
// works: addresses can be resolved by hand. It is called by one goroutine at a time.
func (s *Service) open() {
	chosen, err := s.choose()
	var opened Opened
	if err == nil {
		opened, err = s.with.Opener.Open(s.with.Log, bpf.Config{
			Dir:         s.dir(),
			IPCacheMap:  chosen.path,
			Interval:    s.with.Config.Interval,
			Rate:        s.with.Config.Rate,
			Burst:       s.with.Config.Rate, // what a second may have, it may have at once
			MaxFollowed: s.with.Config.MaxEntries,
		}, s.with.Config.Interfaces, s.with.Config.Devices)
	}
	if err != nil {
		if s.failed == nil || s.failed.Error() != err.Error() {
			s.with.Log.Warn("No signals of misses in the ipcache map: nothing is resolved by itself", "error", err)
			s.health.Degraded("There are no signals of misses", err)
		}
	} else {
		s.kernel.set(opened)
		if unwritten := s.written(chosen); unwritten != nil {
			s.with.Log.Warn("Answers don't get into the ipcache map that is read", "error", unwritten)
			s.health.Degraded("Answers don't get into the map that is read", unwritten)
		} else {
			s.health.OK("Signals of misses are given")
		}
	}
	s.chosen, s.failed = chosen, err
	if !errors.Is(err, bpf.ErrInUse) {
		// What an earlier process has resolved is waited for while that one still ends.
		s.ready()
	}
}

// pause is false if ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
