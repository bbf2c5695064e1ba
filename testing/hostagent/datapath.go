// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/cilium/pkg/bpf"
	listener "github.com/cilium/cilium/pkg/datapath/ipcache"
	"github.com/cilium/cilium/pkg/datapath/tunnel"
	"github.com/cilium/cilium/pkg/endpoint/regeneration"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/k8s/synced"
	ipcachemap "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/ebpf"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// Datapath is what the programs of a node's endpoints find in the agent's map, over its
// restarts: maps of the kernel, which upstream's own listener writes.
//
// An agent makes that map anew at each start. The programs that there are go on with the
// one that they have, as the last agent left it, until they are replaced, which is when
// the agent's fence lifts. There are no programs here, nor a pin for somebody else to find
// the map by; when which map is read is the same.
type Datapath struct {
	t testing.TB
	// replaced has what was in the new map when the fence lifted, once for each start.
	replaced chan map[netip.Prefix]Entry

	// read is the map that programs have; nil before the first fence.
	read atomic.Pointer[datapathMap]

	mu sync.Mutex
	// maps are those of all starts.
	maps []*datapathMap
	// deleted are prefixes that were deleted in a map while programs had it.
	deleted map[netip.Prefix]struct{}
}

// Entry is what the map has of an address.
type Entry struct {
	Identity uint32
	// Tunnel is the node's address; the zero one for none.
	Tunnel netip.Addr
}

// NewDatapath makes one for a test's agent. It skips the test where BPF isn't permitted,
// except in continuous integration (CI is set in the environment).
func NewDatapath(t testing.TB) *Datapath {
	t.Helper()
	d := &Datapath{t: t, replaced: make(chan map[netip.Prefix]Entry, 1), deleted: map[netip.Prefix]struct{}{}}
	t.Cleanup(func() {
		for _, m := range d.maps {
			m.kernel.Close()
		}
	})
	probe, err := newDatapathMap()
	if errors.Is(err, unix.EPERM) {
		skip.Lacking(t, fmt.Errorf("BPF maps need CAP_BPF: %w", err))
	}
	require.NoError(t, err)
	require.NoError(t, probe.Close())
	return d
}

// Cell is for the agent's hive.
func (d *Datapath) Cell() cell.Cell {
	return cell.Invoke(func(log *slog.Logger, jobs job.Group, ipc *ipcache.IPCache, config tunnel.Config,
		fence regeneration.Fence, caches synced.CacheStatus) error {
		kernel, err := newDatapathMap()
		if err != nil {
			return err
		}
		m := &datapathMap{of: d, kernel: kernel}
		d.mu.Lock()
		d.maps = append(d.maps, m)
		d.mu.Unlock()
		ipc.AddListener(listener.NewListener(m, nil, config, log))
		jobs.Add(job.OneShot("replace-programs", func(ctx context.Context, _ cell.Health) error {
			// What upstream waits for before it regenerates an endpoint of before.
			select {
			case <-caches:
			case <-ctx.Done():
				return nil
			}
			if fence.Wait(ctx) != nil {
				return nil
			}
			content, err := m.content()
			if err != nil {
				return err
			}
			d.read.Store(m)
			select {
			case d.replaced <- content:
			case <-ctx.Done():
			}
			return nil
		}))
		return nil
	})
}

// Replaced waits until the programs have the map of the agent that runs, and gives what
// it had then.
func (d *Datapath) Replaced() map[netip.Prefix]Entry {
	d.t.Helper()
	select {
	case content := <-d.replaced:
		return content
	case <-time.After(2 * startTimeout):
	}
	require.FailNow(d.t, "the agent's fence doesn't lift")
	return nil
}

// Content is all that the programs may find.
func (d *Datapath) Content() (map[netip.Prefix]Entry, error) { return d.read.Load().content() }

// Lookup is what a program finds for an address: the entry of the longest prefix that it
// is in. It may be called from any goroutine once the first fence has lifted.
func (d *Datapath) Lookup(address netip.Addr) (Entry, bool, error) {
	return d.read.Load().lookup(address)
}

// Deleted are the prefixes that were deleted, since the first fence, in a map that the
// programs had, even if they were put back at once.
func (d *Datapath) Deleted() []netip.Prefix {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.deleted), netip.Prefix.Compare)
}

// datapathMap is the map of one start. It is upstream's but for its handle, which looks
// for the host's BPF file system.
type datapathMap struct {
	of     *Datapath
	kernel *ebpf.Map
}

var _ listener.Map = (*datapathMap)(nil)

func newDatapathMap() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "hostagent", Type: ebpf.LPMTrie, MaxEntries: ipcachemap.MaxEntries,
		KeySize: uint32(unsafe.Sizeof(ipcachemap.Key{})), ValueSize: uint32(unsafe.Sizeof(ipcachemap.RemoteEndpointInfo{})),
		Flags: unix.BPF_F_NO_PREALLOC | unix.BPF_F_RDONLY_PROG,
	})
	if err != nil {
		return nil, fmt.Errorf("creating a map for the ipcache: %w", err)
	}
	return m, nil
}

// Update implements upstream's listener.Map.
func (m *datapathMap) Update(key bpf.MapKey, value bpf.MapValue) error {
	return m.kernel.Put(key, value)
}

// Delete implements upstream's listener.Map.
func (m *datapathMap) Delete(key bpf.MapKey) error {
	if m.of.read.Load() == m {
		m.of.mu.Lock()
		m.of.deleted[key.(*ipcachemap.Key).Prefix()] = struct{}{}
		m.of.mu.Unlock()
	}
	return m.kernel.Delete(key)
}

func (m *datapathMap) lookup(address netip.Addr) (Entry, bool, error) {
	key := ipcachemap.NewKey(address.AsSlice(), nil, 0)
	var value ipcachemap.RemoteEndpointInfo
	switch err := m.kernel.Lookup(&key, &value); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Entry{}, false, nil
	case err != nil:
		return Entry{}, false, fmt.Errorf("looking up %s: %w", address, err)
	}
	return entryOf(&value), true, nil
}

// content is all entries. What is changed meanwhile may be missing, or be there twice.
func (m *datapathMap) content() (map[netip.Prefix]Entry, error) {
	entries := map[netip.Prefix]Entry{}
	var key ipcachemap.Key
	var value ipcachemap.RemoteEndpointInfo
	all := m.kernel.Iterate()
	for all.Next(&key, &value) {
		entries[key.Prefix()] = entryOf(&value)
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("listing the map: %w", err)
	}
	return entries, nil
}

func entryOf(value *ipcachemap.RemoteEndpointInfo) Entry {
	entry := Entry{Identity: value.SecurityIdentity}
	if value.Flags&ipcachemap.FlagHasTunnelEndpoint != 0 {
		entry.Tunnel, _ = netip.AddrFromSlice(value.GetTunnelEndpoint())
	}
	return entry
}
