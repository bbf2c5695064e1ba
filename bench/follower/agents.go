// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// AgentsConfig is what a benchmark tells a process of many agents.
type AgentsConfig struct {
	// Agents is their number.
	Agents int
	// Datastore is where they read their cluster's state from, as that of an agent:
	// the API server of Kubeconfig, or the etcd of KVStoreOpt.
	Datastore  string
	Kubeconfig string
	KVStoreOpt string
	// Bare has bare agents: see runBare.
	Bare bool
	// Slices reads CiliumEndpointSlices.
	Slices bool
	// Socket is the path of the Unix socket to serve at.
	Socket string
}

// Register adds the flags.
func (c *AgentsConfig) Register(flags *pflag.FlagSet) {
	flags.IntVar(&c.Agents, "agents", 1, "Number of agents")
	flags.StringVar(&c.Datastore, "datastore", inclustercache.DatastoreKubernetes, "Where the cluster's state is read from, as of an agent")
	flags.StringVar(&c.KVStoreOpt, "kvstore-opt", "", "Key-value store options")
	flags.StringVar(&c.Kubeconfig, "k8s-kubeconfig-path", "", "Absolute path of the kubernetes kubeconfig file")
	flags.BoolVar(&c.Bare, "bare", false, "Only open the watches that an agent has")
	flags.BoolVar(&c.Slices, "enable-cilium-endpoint-slice", false, "Read CiliumEndpointSlices instead of CiliumEndpoints")
	flags.StringVar(&c.Socket, "socket", "", "Path of the socket to tell what has arrived")
}

// AgentsStatus is what each agent of a process has in its tables.
type AgentsStatus struct {
	// Sums are, by agent, the sums of the Marks of all rows.
	Sums []Mark
	// Rows are their numbers, by agent.
	Rows []int
	// Bare is the number of bare agents that have all their watches.
	Bare int
}

// Having is the number of agents that have so many rows with that sum.
func (s AgentsStatus) Having(sum Mark, rows int) (n int) {
	for i := range s.Sums {
		if s.Sums[i] == sum && s.Rows[i] == rows {
			n++
		}
	}
	return n
}

// agentsStartingAtOnce is the number of agents that start at a time: each of them
// lists everything.
const agentsStartingAtOnce = 8

// RunAgents is so many agents of one cluster: each has a hive with the cells that
// fill an agent's tables, its own tables, and its own connections. There is
// nothing behind the tables but what notes when a row changed. It returns nil
// when ctx ends, and before that the first error of an agent that couldn't start.
func RunAgents(ctx context.Context, log *slog.Logger, config AgentsConfig) (err error) {
	if config.Bare {
		var opened atomic.Int64
		status := newServer(config.Socket, func() any { return AgentsStatus{Bare: int(opened.Load())} })
		if err := status.Start(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, status.Stop(ctx)) }()
		return runBare(ctx, config, func() { opened.Add(1) })
	}
	all := make([]*agent, config.Agents)
	for i := range all {
		all[i] = &agent{rows: map[Object]Mark{}}
	}
	status := newServerOf(config.Socket, handleAgents(all))
	if err := status.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, status.Stop(ctx)) }()
	starting := semaphore.NewWeighted(agentsStartingAtOnce)
	group, running := errgroup.WithContext(ctx)
	for i, a := range all {
		group.Go(func() error {
			if err := a.run(running, log, config, starting); err != nil && running.Err() == nil {
				return fmt.Errorf("agent %d: %w", i+1, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// handleAgents tells what the agents have: their status, and at /arrivals what
// has arrived since /record.
func handleAgents(all []*agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", answer(func() any {
		var status AgentsStatus
		for _, a := range all {
			sum, rows := a.content()
			status.Sums, status.Rows = append(status.Sums, sum), append(status.Rows, rows)
		}
		return status
	}))
	mux.HandleFunc("/record", func(http.ResponseWriter, *http.Request) {
		for _, a := range all {
			a.record()
		}
	})
	mux.HandleFunc("/arrivals", func(w http.ResponseWriter, _ *http.Request) {
		for _, a := range all {
			if writeArrivals(w, a.recorded()) != nil {
				return // whoever asked has gone
			}
		}
	})
	return mux
}

// AskAgents asks the agents of a process what they have.
func AskAgents(ctx context.Context, socket string) (status AgentsStatus, err error) {
	err = ask(ctx, socket, &status)
	return status, err
}

// RecordAgents has the agents of a process note what arrives from now on, and
// forget what did before.
func RecordAgents(ctx context.Context, socket string) error {
	return request(ctx, socket, "/record", func(io.Reader) error { return nil })
}

// AskArrivals gives fn what has arrived at each agent of a process, in turns.
func AskArrivals(ctx context.Context, socket string, fn func([]Arrival) error) error {
	return request(ctx, socket, "/arrivals", func(body io.Reader) error { return readArrivals(body, fn) })
}

// agent is one of them.
type agent struct {
	mu        sync.Mutex
	rows      map[Object]Mark
	sum       Mark
	recording bool
	arrivals  []Arrival
}

// run is the agent's life. It has started when it has all it needs to begin its
// lists.
func (a *agent) run(ctx context.Context, log *slog.Logger, config AgentsConfig, starting *semaphore.Weighted) (err error) {
	if err := starting.Acquire(ctx, 1); err != nil {
		return err
	}
	release := sync.OnceFunc(func() { starting.Release(1) })
	defer release()
	h := hive.New(
		cells.AgentTables,
		kubernetes.ClientCell,
		cell.Invoke(func(p agentParams) { p.follow(a, release) }),
	)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	for name, value := range map[string]string{
		"datastore":                    config.Datastore,
		"state-dir":                    "", // many in one process; and the default is a real agent's
		"k8s-kubeconfig-path":          config.Kubeconfig,
		"kvstore-opt":                  config.KVStoreOpt,
		"enable-cilium-endpoint-slice": strconv.FormatBool(config.Slices),
	} {
		if name == "kvstore-opt" && value == "" {
			continue // a map has no empty value
		}
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("setting --%s: %w", name, err)
		}
	}
	if err := h.Start(log, ctx); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	<-ctx.Done()
	return h.Stop(log, context.WithoutCancel(ctx))
}

// agentParams are the tables of an agent.
type agentParams struct {
	cell.In

	Jobs       job.Group
	DB         *statedb.DB
	Endpoints  statedb.Table[*state.Endpoint]
	Identities statedb.Table[*state.Identity]
	Nodes      statedb.Table[*state.Node]
	Services   statedb.Table[*state.Service]
}

// follow has the agent note what changes in its tables; complete is called when
// all were initialized.
func (p agentParams) follow(a *agent, complete func()) {
	p.Jobs.Add(job.OneShot("await-tables", func(ctx context.Context, _ cell.Health) error {
		for _, table := range [...]interface {
			Initialized(statedb.ReadTxn) (bool, <-chan struct{})
		}{p.Endpoints, p.Identities, p.Nodes, p.Services} {
			_, done := table.Initialized(p.DB.ReadTxn())
			select {
			case <-ctx.Done():
				return nil
			case <-done:
			}
		}
		complete()
		return nil
	}))
	p.Jobs.Add(job.OneShot("note-arrivals", func(ctx context.Context, _ cell.Health) error {
		wtxn := p.DB.WriteTxn(p.Endpoints, p.Identities, p.Nodes, p.Services)
		endpoints, err1 := p.Endpoints.Changes(wtxn)
		identities, err2 := p.Identities.Changes(wtxn)
		nodes, err3 := p.Nodes.Changes(wtxn)
		services, err4 := p.Services.Changes(wtxn)
		wtxn.Commit()
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return fmt.Errorf("watching the tables: %w", err)
		}
		for {
			txn := p.DB.ReadTxn()
			at := time.Now()
			a.mu.Lock()
			changed := [...]<-chan struct{}{
				note(a, txn, at, endpoints, endpointRow), note(a, txn, at, identities, identityRow),
				note(a, txn, at, nodes, nodeRow), note(a, txn, at, services, serviceRow),
			}
			a.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil
			case <-changed[0]:
			case <-changed[1]:
			case <-changed[2]:
			case <-changed[3]:
			}
		}
	}))
}

// note takes in what has changed in one table, seen at that time. The lock of the
// agent is held.
func note[T any](a *agent, txn statedb.ReadTxn, at time.Time, changes statedb.ChangeIterator[T], of func(T) (Object, Mark, bool)) <-chan struct{} {
	next, changed := changes.Next(txn)
	for change := range next {
		if object, mark, ok := of(change.Object); ok {
			a.see(object, mark, change.Deleted, at)
		}
	}
	return changed
}

// see takes in one row. The lock is held.
func (a *agent) see(object Object, mark Mark, deleted bool, at time.Time) {
	a.sum -= a.rows[object]
	if deleted {
		delete(a.rows, object)
		mark = object.Gone()
	} else {
		a.rows[object] = mark
		a.sum += mark
	}
	if a.recording {
		a.arrivals = append(a.arrivals, Arrival{Mark: mark, At: at})
	}
}

func (a *agent) content() (sum Mark, rows int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sum, len(a.rows)
}

func (a *agent) record() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arrivals = a.arrivals[:0]
	a.recording = true
}

func (a *agent) recorded() []Arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.arrivals)
}
