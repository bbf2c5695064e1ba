// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package follower is an agent that measures: it takes in a mesh as any agent
// does, and notes for each event of a benchmark how long it took until its table
// had it. A benchmark runs it as a process of its own and asks it over a socket.
//
//	stamp.go     how an event carries its number and its time
//	latency.go   histograms
//	follower.go  the cell
//	status.go    what it says
//	readers.go   many readers of one etcd in place of one agent
//	agents.go    many agents of one cluster, each with its own tables
//	bare.go      many agents without what they do with what they are sent
//	mark.go      what a row says, as a number
//	arrivals.go  when rows arrived in the agents' tables
//	meshes.go    the side that reads of many KVStoreMeshes, in their place
//	counted.go   an etcd that counts what is listed
package follower

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/state"
)

// Config is what a benchmark tells its follower.
type Config struct {
	// FollowSocket is the path of the Unix socket to serve Status on.
	FollowSocket string `mapstructure:"follow-socket"`
	// FollowRun is the run whose events count; those of earlier ones are in the
	// sources still.
	FollowRun int `mapstructure:"follow-run"`
}

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.String("follow-socket", def.FollowSocket, "Path of the socket to tell what has arrived")
	flags.Int("follow-run", def.FollowRun, "Number of the run whose events count")
}

// Cell follows the table of endpoints.
var Cell = cell.Module(
	"follower",
	"Latencies of what arrives in the table of endpoints",

	cell.Config(Config{}),
	cell.Invoke(register),
)

type params struct {
	cell.In

	Jobs      job.Group
	Lifecycle cell.Lifecycle
	Config    Config
	DB        *statedb.DB
	Endpoints statedb.Table[*state.Endpoint]
}

// follower keeps what it has seen.
type follower struct {
	config    Config
	db        *statedb.DB
	endpoints statedb.Table[*state.Endpoint]

	mu        sync.Mutex
	last      map[netip.Prefix]int
	status    Status
	latencies *hdrhistogram.Histogram
}

func register(p params) error {
	if p.Config.FollowSocket == "" {
		return errors.New("--follow-socket is empty")
	}
	f := &follower{
		config: p.Config, db: p.DB, endpoints: p.Endpoints,
		last: map[netip.Prefix]int{}, latencies: NewHistogram(),
	}
	p.Jobs.Add(job.OneShot("follow", f.run))
	p.Lifecycle.Append(newServer(p.Config.FollowSocket, func() any { return f.now() }))
	return nil
}

// run follows the table until ctx ends.
func (f *follower) run(ctx context.Context, _ cell.Health) error {
	wtxn := f.db.WriteTxn(f.endpoints)
	changes, err := f.endpoints.Changes(wtxn)
	wtxn.Commit()
	if err != nil {
		return fmt.Errorf("watching endpoints: %w", err)
	}
	for {
		next, changed := changes.Next(f.db.ReadTxn())
		at := time.Now()
		f.mu.Lock()
		for change := range next {
			if !change.Deleted {
				f.see(change.Object, at)
			}
		}
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// see takes in one row as it was at that time.
func (f *follower) see(row *state.Endpoint, at time.Time) {
	stamp, ok := ParseStamp(row.Pod())
	if !ok || stamp.Run != f.config.FollowRun {
		return
	}
	Record(f.latencies, at.Sub(stamp.Due))
	f.status.Seen++
	f.status.Sum += stamp.Number - f.last[row.Prefix()]
	f.last[row.Prefix()] = stamp.Number
}

func (f *follower) now() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := f.status
	status.Entries = f.endpoints.NumObjects(f.db.ReadTxn())
	status.Latencies = f.latencies.Export()
	return status
}
