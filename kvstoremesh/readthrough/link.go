// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// limits bound what a remote cluster is asked.
type limits struct {
	// timeout of one look-up, the wait for a slot included. It is less than the agents'
	// own (--ondemand-lookup-timeout), so that they are told why.
	timeout time.Duration
	// slots are the look-ups at a time of one cluster, of which many share a question.
	slots int64
	// failures of questions in a row, after which nothing is asked for a while, and then
	// one is tried.
	failures uint32
	pause    time.Duration
}

// defaultLimits have room for 1,200 look-ups a second of a cluster that is 100 ms away, as
// the client's requests have: two at a time, of 128 keys, with two keys for a look-up, and
// up to three for the evidence of all.
var defaultLimits = limits{timeout: 1500 * time.Millisecond, slots: 128, failures: 5, pause: time.Second}

// link is what belongs to one connection to one remote cluster. What was learned over
// another connection, from a source with another ID perhaps, isn't given over this one.
type link struct {
	conn      remote.Connection
	serial    uint64
	validator *wire.Validator
	regional  bool
	slots     *semaphore.Weighted
	breaker   *gobreaker.CircuitBreaker[[]remote.LookedUp]
}

func newLink(conn remote.Connection, serial uint64, local wire.ClusterInfo, region string, limits limits) *link {
	return &link{
		conn: conn, serial: serial,
		validator: wire.NewValidator(conn.Cluster, conn.Config.ID, local.MaxConnectedClusters),
		regional:  filter.Regional(conn.Config.Region, region),
		slots:     semaphore.NewWeighted(limits.slots),
		breaker: gobreaker.NewCircuitBreaker[[]remote.LookedUp](gobreaker.Settings{
			Name:         conn.Cluster,
			Timeout:      limits.pause,
			ReadyToTrip:  func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= limits.failures },
			IsSuccessful: func(err error) bool { return err == nil || !away(etcd.CodeOf(err)) },
		}),
	}
}

// is says whether the connection is still this one.
func (l *link) is(conn remote.Connection) bool {
	return l.conn.Client == conn.Client && l.conn.Config.ID == conn.Config.ID && l.conn.Config.Region == conn.Config.Region
}

// away says whether an error says that the etcd couldn't answer, rather than what it
// answered.
func away(code codes.Code) bool {
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Aborted:
		return true
	}
	return false
}
