// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestWatchdog(t *testing.T) {
	put := []*clientv3.Event{{Type: clientv3.EventTypePut}}
	deletion := []*clientv3.Event{{Type: clientv3.EventTypeDelete}}
	for _, test := range []struct {
		name    string
		beats   [][]*clientv3.Event // one for each step, which is just below an interval
		expired bool
	}{
		{name: "beating", beats: [][]*clientv3.Event{put, put, put, put, put}},
		{name: "one missed", beats: [][]*clientv3.Event{put, nil, put, nil, put}},
		{name: "never any", beats: [][]*clientv3.Event{nil, nil, nil}, expired: true},
		{name: "stopped", beats: [][]*clientv3.Event{put, put, nil, nil, nil}, expired: true},
		{name: "a deletion is no beat", beats: [][]*clientv3.Event{put, deletion, deletion, nil}, expired: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			clock := clocktesting.NewFakeClock(time.Now())
			dog := newWatchdog(clock)
			defer dog.stop()
			for i, events := range test.beats {
				require.Empty(t, dog.expired(), "expired before step %d", i)
				clock.Step(wire.HeartbeatInterval - time.Second)
				dog.observe(events)
			}
			if test.expired {
				<-dog.expired()
				require.ErrorIs(t, dog.err(), errNoHeartbeat)
				require.ErrorContains(t, dog.err(), "2m57s")
			} else {
				require.Empty(t, dog.expired())
			}
		})
	}
}
