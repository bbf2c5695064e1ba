// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// heartbeatLimit is upstream's: a connection is dropped when no heartbeat was
// seen for two intervals. That holds from the start of the connection on, and
// so also where the source has no heartbeat key at all.
const heartbeatLimit = 2 * wire.HeartbeatInterval

var errNoHeartbeat = errors.New("no heartbeat from the source")

// watchdog tells when a source has stopped to live although its etcd answers:
// an exporter that died, or an etcd that is cut off from it. What counts is
// that the key is written; its value, a time by another clock, is ignored.
// It belongs to one goroutine.
type watchdog struct {
	clock clock.Clock
	last  time.Time
	timer clock.Timer
}

func newWatchdog(clock clock.Clock) *watchdog {
	return &watchdog{clock: clock, last: clock.Now(), timer: clock.NewTimer(heartbeatLimit)}
}

// observe takes what the watch on the heartbeat key says. A deletion is none.
func (w *watchdog) observe(events []*clientv3.Event) {
	for _, event := range events {
		if event.Type == clientv3.EventTypePut {
			w.last = w.clock.Now()
			w.timer.Reset(heartbeatLimit)
			return
		}
	}
}

// expired delivers when the source has been silent for too long.
func (w *watchdog) expired() <-chan time.Time { return w.timer.C() }

// err says for how long.
func (w *watchdog) err() error {
	return fmt.Errorf("%w for %s", errNoHeartbeat, w.clock.Since(w.last).Round(time.Second))
}

func (w *watchdog) stop() { w.timer.Stop() }
