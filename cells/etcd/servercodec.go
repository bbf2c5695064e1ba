// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_embedded_etcd

package etcd

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// serverCodec is the codec for an embedded etcd, whose own encodes the events of a commit
// once for each of those who watch them. BenchmarkWatchers compares the two.
type serverCodec struct {
	*codec
	shared         sharedEvents
	sent, received prometheus.Counter
}

func newServerCodec() *serverCodec {
	return &serverCodec{
		codec:    newCodec(),
		sent:     counterOfEtcd("client_grpc_sent_bytes_total", "The total number of bytes sent to grpc clients."),
		received: counterOfEtcd("client_grpc_received_bytes_total", "The total number of bytes received from grpc clients."),
	}
}

// counterOfEtcd finds a counter that etcd's own codec has, and increases. The library
// keeps it to itself; by name and help the registry has the same.
func counterOfEtcd(name, help string) prometheus.Counter {
	counter := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "network", Name: name, Help: help})
	var registered prometheus.AlreadyRegisteredError
	if errors.As(prometheus.Register(counter), &registered) {
		return registered.ExistingCollector.(prometheus.Counter)
	}
	return counter
}

// Marshal implements encoding.CodecV2.
func (c *serverCodec) Marshal(v any) (data mem.BufferSlice, err error) {
	if response, ok := v.(*pb.WatchResponse); ok && isShared(response) {
		data, err = c.shared.marshal(response)
	} else {
		data, err = c.codec.Marshal(v)
	}
	c.sent.Add(float64(data.Len()))
	return data, err
}

// Unmarshal implements encoding.CodecV2.
func (c *serverCodec) Unmarshal(data mem.BufferSlice, v any) error {
	c.received.Add(float64(data.Len()))
	return c.unmarshal(data, v)
}

// maxSharedBytes bounds what is kept of what others may be told as well: a commit of 1,024
// changes is smaller. What is larger is what somebody has missed, and is told alone.
const maxSharedBytes = 512 << 10

// isShared says whether a response is nothing but the events of one or several commits.
func isShared(r *pb.WatchResponse) bool {
	return len(r.Events) > 0 && r.Header != nil && !r.Created && !r.Canceled && r.CompactRevision == 0 && r.CancelReason == "" &&
		!r.Fragment && r.Size() <= maxSharedBytes
}

// sharedEvents encodes what several watchers are told once for all of them, but for the
// number that each has for its watch. It is safe for concurrent use.
type sharedEvents struct {
	mu sync.Mutex
	// recent are the last that were encoded, of which the one at next goes next. There are
	// several, as those who watch other prefixes are told others of the same commit.
	recent [8]encodedEvents
	next   int
}

// encodedEvents is a response without its WatchId, and what it is encoded as.
type encodedEvents struct {
	response pb.WatchResponse
	data     mem.SliceBuffer
}

// watchIDField is WatchResponse.watch_id of etcd's rpc.proto.
const watchIDField protowire.Number = 2

func (s *sharedEvents) marshal(response *pb.WatchResponse) (mem.BufferSlice, error) {
	data, err := s.withoutID(response)
	if err != nil || response.WatchId == 0 {
		return mem.BufferSlice{data}, err
	}
	// In which order fields come doesn't matter.
	id := protowire.AppendTag(nil, watchIDField, protowire.VarintType)
	id = protowire.AppendVarint(id, uint64(response.WatchId))
	return mem.BufferSlice{data, mem.SliceBuffer(id)}, nil
}

func (s *sharedEvents) withoutID(response *pb.WatchResponse) (mem.SliceBuffer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.recent {
		if saysTheSame(&s.recent[i].response, response) {
			return s.recent[i].data, nil
		}
	}
	// Others wait meanwhile: most often for the same.
	shared := pb.WatchResponse{Header: response.Header, Events: response.Events}
	data, err := shared.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", response, err)
	}
	s.recent[s.next] = encodedEvents{shared, data}
	s.next = (s.next + 1) % len(s.recent)
	return data, nil
}

// saysTheSame compares what is shared of two responses. etcd hands the same key-values to
// all who are told of a commit as it is made. They aren't modified, and while one is kept
// here nothing else has its address.
func saysTheSame(a, b *pb.WatchResponse) bool {
	return a.Header != nil && a.Header.Revision == b.Header.Revision && a.Header.RaftTerm == b.Header.RaftTerm &&
		a.Header.ClusterId == b.Header.ClusterId && a.Header.MemberId == b.Header.MemberId &&
		slices.EqualFunc(a.Events, b.Events, func(x, y *mvccpb.Event) bool {
			return x.Type == y.Type && x.Kv == y.Kv && x.PrevKv == y.PrevKv
		})
}
