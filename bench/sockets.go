// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketsEvery is the time between two looks at the sockets.
	socketsEvery = 10 * time.Millisecond
	// socketsShare is how many times longer than the processor time of a look the
	// pause after it is at least, however many sockets the machine has. A look
	// takes 0.3 ms with 120 sockets, of which most is the walk over the kernel's
	// table.
	socketsShare = 20
)

// traffic is what a subject had connected to, received and sent at one moment.
type traffic struct {
	at time.Time
	// connections is the number of connections to source etcds made so far.
	connections int
	// listed is the number of bytes received from source etcds, written that of
	// those the local etcd has acknowledged.
	listed, written uint64
}

// socketWatch follows the sockets between a subject and the etcds, by the
// kernel's accounts (INET_DIAG_INFO). It costs neither the subject nor the etcds
// anything, and is the same for whatever program the subject is.
type socketWatch struct {
	sources, local map[string]bool // addresses
	strangers      map[uint64]bool // sockets that were there before
	own            map[uint64]*netlink.InetDiagTCPInfoResp

	end    chan struct{}
	wait   sync.WaitGroup
	series []traffic
}

// watchSockets begins to follow, before the subject is started: what is connected
// then isn't the subject's. It is nil, and that is logged, where the kernel
// doesn't tell.
func watchSockets(log *slog.Logger, local *etcdProcess, sources []*etcdProcess) *socketWatch {
	w := &socketWatch{sources: map[string]bool{}, local: map[string]bool{addressOf(local.url): true},
		strangers: map[uint64]bool{}, own: map[uint64]*netlink.InetDiagTCPInfoResp{}, end: make(chan struct{})}
	for _, e := range sources {
		w.sources[addressOf(e.url)] = true
	}
	before, err := tcpSockets()
	if err != nil {
		log.Warn("Phases can't be told from each other", "error", err)
		return nil
	}
	for _, s := range before {
		w.strangers[cookie(s)] = true
	}
	w.wait.Go(w.run)
	return w
}

func (w *socketWatch) run() {
	// A thread of its own, whose processor time is that of the looks. By the
	// clock, a busy machine would be looked at all the more seldom.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for ended := false; ; {
		before := threadCPU()
		began := time.Now()
		if sockets, err := tcpSockets(); err == nil {
			w.series = append(w.series, w.take(began, sockets))
		}
		select {
		case <-w.end:
			if ended {
				return
			}
			ended = true // and once more, for what it comes to in the end
		case <-time.After(max(socketsEvery, socketsShare*(threadCPU()-before))):
		}
	}
}

// threadCPU is the processor time of the calling thread so far.
func threadCPU() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &usage); err != nil {
		return 0 // which Linux has for all
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// take adds up what the subject's sockets have carried, those that are closed by
// now included.
func (w *socketWatch) take(at time.Time, sockets []*netlink.InetDiagTCPInfoResp) traffic {
	const established = 1 // TCP_ESTABLISHED of net/tcp_states.h
	for _, s := range sockets {
		peer := s.InetDiagMsg.ID.Destination.String()
		if s.TCPInfo == nil || !w.sources[peer] && !w.local[peer] || w.strangers[cookie(s)] {
			continue
		}
		if s.InetDiagMsg.State == established || w.own[cookie(s)] != nil {
			w.own[cookie(s)] = s
		}
	}
	out := traffic{at: at}
	for _, s := range w.own {
		if w.local[s.InetDiagMsg.ID.Destination.String()] {
			out.written += s.TCPInfo.Bytes_acked
			continue
		}
		out.connections++
		out.listed += s.TCPInfo.Bytes_received
	}
	return out
}

// stop ends it and gives what it has seen. It may be called again, and of nil.
func (w *socketWatch) stop() []traffic {
	if w == nil {
		return nil
	}
	select {
	case <-w.end:
	default:
		close(w.end)
		w.wait.Wait()
	}
	return w.series
}

func tcpSockets() ([]*netlink.InetDiagTCPInfoResp, error) {
	sockets, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
	// Interrupted: sockets came or went meanwhile, as they do.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("asking the kernel for its TCP sockets: %w", err)
	}
	return sockets, nil
}

func cookie(s *netlink.InetDiagTCPInfoResp) uint64 {
	return uint64(s.InetDiagMsg.ID.Cookie[0])<<32 | uint64(s.InetDiagMsg.ID.Cookie[1])
}

// addressOf is the IP address in an etcd's URL.
func addressOf(etcd string) string {
	u, err := url.Parse(etcd)
	if err != nil {
		return ""
	}
	return net.ParseIP(u.Hostname()).String()
}
