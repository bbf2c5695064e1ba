// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/bench/await"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/netns"
)

const (
	// seeWhatCame is the least time between two looks at what has come, for which others can
	// be sent to. No latency depends on it.
	seeWhatCame = 200 * time.Microsecond
	// sendAgain is when a packet is sent again to an address that isn't in the map: longer
	// than the interval in which the kernel gives no second signal for it.
	sendAgain = 250 * time.Millisecond
)

// missSender sends packets from a pod, and waits for their destinations to come into an
// agent's map, from outside of the agent. One goroutine does both for all that are missed at
// a time: with a goroutine for each, that wakes for its packet and its entry, the sender took
// as much processor time as the other cluster's etcd.
type missSender struct {
	socket  *net.UDPConn
	watch   *await.Watch
	target  *ebpf.Map
	missing map[await.Entry]*missed
	// again counts the packets that were sent again.
	again int
}

// missed is an address that was sent to and isn't in the map yet.
type missed struct {
	to netip.AddrPort
	// began is right before the first packet, and sent before the last, by await.Now.
	began, sent time.Duration
}

// sender sends from pod and looks into target, which it closes, for up to room misses at a
// time.
func (n *missNode) sender(pod *netns.Pod, target *ebpf.Map, room int) (*missSender, error) {
	watch, err := await.New(target, room)
	if err != nil {
		return nil, errors.Join(err, target.Close())
	}
	s := &missSender{watch: watch, target: target, missing: map[await.Entry]*missed{}}
	if s.socket, err = pod.UDP(netip.AddrPortFrom(pod.Addrs[0], 0)); err != nil {
		return nil, errors.Join(err, watch.Close(), target.Close())
	}
	return s, nil
}

func (s *missSender) close() error {
	return errors.Join(s.socket.Close(), s.watch.Close(), s.target.Close())
}

// miss sends to n endpoints that aren't in the map, of which get gives the i-th, so many at
// a time, and yields how long it took until each was there: since right before the first
// packet was sent, some 10 µs before the kernel's signal.
func (s *missSender) miss(ctx context.Context, n, atATime int, get func(i int) wire.Endpoint, came func(time.Duration)) error {
	ticker := time.NewTicker(seeWhatCame)
	defer ticker.Stop()
	for i := 0; i < n || len(s.missing) > 0; {
		for ; i < n && len(s.missing) < atATime; i++ {
			if err := s.begin(get(i)); err != nil {
				return err
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			for e := range s.missing {
				return fmt.Errorf("%s and %d others aren't in the map: %w", e.Key, len(s.missing)-1, context.Cause(ctx))
			}
			return context.Cause(ctx)
		}
		if err := s.watch.Arrived(func(e await.Entry, at time.Duration) {
			came(at - s.missing[e].began)
			delete(s.missing, e)
		}); err != nil {
			return err
		}
		now := await.Now()
		for _, m := range s.missing {
			if now-m.sent < sendAgain {
				continue
			}
			s.again++
			if err := s.send(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin has one missed.
func (s *missSender) begin(e wire.Endpoint) error {
	key, _ := ipcache.NewKey(e.Prefix)
	entry := await.Entry{Key: key, Identity: e.Identity}
	if err := s.watch.Expect(entry); err != nil {
		return err
	}
	m := &missed{to: netip.AddrPortFrom(e.Prefix.Addr(), missPort), began: await.Now()}
	s.missing[entry] = m
	return s.send(m)
}

func (s *missSender) send(m *missed) error {
	m.sent = await.Now()
	_, err := s.socket.WriteToUDPAddrPort([]byte{'?'}, m.to)
	return err
}
