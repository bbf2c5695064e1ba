// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/testing/netns"
)

const (
	// scanPart is how many packets of a scan are sent without a look at the clock.
	scanPart = 1024
	// scanPause is the time between two single misses.
	scanPause = 10 * time.Millisecond
)

// scan measures single misses of one pod while another one sends to absent addresses, and
// what that costs an agent as shipped.
func (n *missNode) scan(ctx context.Context, f *MissFigures) (err error) {
	// What the first agent has left would look at each packet as well.
	if err := bpf.Remove(n.config.Log, filepath.Join(n.dir, "bpf", "agent", "ondemand")); err != nil {
		return err
	}
	scanner, err := n.nodes.AddPod("scan", scanPod)
	if err != nil {
		return err
	}
	genuine, err := n.nodes.AddPod("one", missPod.Prev())
	if err != nil {
		return err
	}
	agent, err := n.startAgent(ctx, "agent-scanned", genuine, 1, n.config.Misses+n.config.singles()+1)
	if err != nil {
		return err
	}
	defer agent.Kill()
	socket, err := scanner.UDP(netip.AddrPortFrom(scanner.Addrs[0], 0))
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := agent.ResetPeak(); err != nil {
		return err
	}
	memory, err := agent.Memory()
	if err != nil {
		return err
	}
	cpu, err := agent.CPU()
	if err != nil {
		return err
	}

	s := &ScanFigures{}
	latencies, began := follower.NewHistogram(), time.Now()
	var done atomic.Bool
	running, alive := errgroup.WithContext(ctx)
	running.Go(func() error {
		// At least so many, and as long as there are single misses.
		to := netip.AddrPortFrom(scanNetwork.Addr(), missPort)
		for s.Packets < n.config.Scan || !done.Load() {
			if err := netns.Scan(socket, to, scanPart); err != nil || alive.Err() != nil {
				return errors.Join(err, context.Cause(alive))
			}
			s.Packets += scanPart
			to = netip.AddrPortFrom(nth(scanNetwork.Addr(), s.Packets%(1<<24)), missPort)
		}
		return nil
	})
	running.Go(func() error {
		defer done.Store(true)
		for i := range n.config.singles() {
			one := func(int) wire.Endpoint { return n.cluster.endpointObject(n.config.Misses + i) }
			if err := agent.sender.miss(alive, 1, 1, one, func(took time.Duration) { follower.Record(latencies, took) }); err != nil {
				return err
			}
			time.Sleep(scanPause)
		}
		return nil
	})
	if err := running.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, agent.LogTail())
	}
	s.Seconds = time.Since(began).Seconds()
	after, err := agent.CPU()
	if err != nil {
		return err
	}
	peak, err := agent.Memory()
	if err != nil {
		return err
	}
	s.AgentCPUSeconds, s.GrownBytes = (after - cpu).Seconds(), peak.Peak-memory.Resident
	families, err := scrape(ctx, agent.metrics)
	if err != nil {
		return err
	}
	s.Signals, s.RateLimited = int(total(families, metricSignals, "result", "signalled")), int(total(families, metricSignals, "result", "rate-limited"))
	f.inScan = latencies.Export()
	s.Latency, s.SentAgain = latencyOf(f.inScan), agent.sender.again
	f.Scan = s
	return agent.end()
}

// packets measures how long the program for pods' interfaces takes for a packet, with a
// map of the size of the largest mesh, by BPF_PROG_TEST_RUN.
func (n *missNode) packets(ctx context.Context, f *MissFigures) (err error) {
	const (
		repeat = 1_000_000
		cidrs  = 2550 // five of each of 510 clusters
	)
	m, err := ipcache.OpenBPF(n.config.Log, ipcache.BPFConfig{Root: filepath.Join(n.dir, "bpf"), Dir: "packets", Capacity: ipcache.DefaultConfig.Capacity})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	wanted, entries := map[netip.Prefix]uint32{}, make([]ipcache.Entry, 0, n.config.Entries)
	each := (n.config.Entries + cidrs - 1) / cidrs
	var hit, miss netip.Addr
	for c := range cidrs {
		cidr := netip.PrefixFrom(nth(podNetwork, c<<12), 20)
		wanted[cidr] = uint32(c/5) + 1
		for i := range min(each, n.config.Entries-len(entries)) {
			hit = nth(cidr.Addr(), i+1)
			key, _ := ipcache.NewKey(netip.PrefixFrom(hit, 32))
			entries = append(entries, ipcache.Entry{Key: key, Value: ipcache.NewValue(wire.IdentityRangeFor(wanted[cidr], 511).Min, netip.Addr{}, 0, 0)})
		}
		miss = nth(cidr.Addr(), 1<<12-2)
	}
	if err := fillMap(ctx, m, entries); err != nil {
		return fmt.Errorf("filling the map: %w", err)
	}
	kernel, err := bpf.Open(n.config.Log, bpf.Config{Dir: filepath.Join(n.dir, "bpf", "packets", "ondemand"), IPCacheMap: m.Path()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kernel.Close()) }()
	if err := kernel.SetCIDRs(wanted); err != nil {
		return err
	}
	for _, of := range []struct {
		figure *float64
		to     netip.Addr
	}{{&f.PerPacketHit, hit}, {&f.PerPacketMiss, miss}, {&f.PerPacketOther, scanPod}} {
		took, err := kernel.Measure(bpf.KindPod, packetTo(of.to), repeat)
		if err != nil {
			return err
		}
		*of.figure = float64(took)
	}
	stats, err := kernel.Stats()
	if err != nil {
		return err
	}
	if stats.Hits < repeat || stats.Misses < repeat || stats.Others < repeat {
		return fmt.Errorf("the packets weren't what they were to be: %+v", stats)
	}
	return nil
}

// fillMap writes entries. The kernel fills up its stock of memory for tries behind whoever
// writes, who finds it empty now and then (ENOMEM): that is tried again, as the agent does.
func fillMap(ctx context.Context, m ipcache.Map, entries []ipcache.Entry) (err error) {
	backoff := wait.Backoff{Duration: time.Millisecond, Factor: 2, Steps: 12}
	for {
		errs := m.Update(entries)
		if err = errors.Join(errs...); err == nil || backoff.Steps == 0 {
			return err
		}
		left := entries[:0:0]
		for i, err := range errs {
			if err != nil {
				left = append(left, entries[i])
			}
		}
		entries = left
		select {
		case <-time.After(backoff.Step()):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// packetTo is the frame of an empty UDP packet.
func packetTo(to netip.Addr) []byte {
	const ethernet, ipv4, udp = 14, 20, 8
	frame := make([]byte, ethernet+ipv4+udp)
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	header := frame[ethernet:]
	header[0], header[8], header[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(header[2:], ipv4+udp)
	copy(header[12:], missPod.AsSlice())
	copy(header[16:], to.AsSlice())
	return frame
}
