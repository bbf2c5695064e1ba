// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
)

// agents are the processes that the agents of a round are in. There may be none.
type agents struct {
	// processes are those of agents with tables, and after them those of bare ones.
	processes []*process.Process
	// sockets are those of agents with tables.
	sockets []string
}

// askAgentsAgain is the time between two questions to the agents of a process. It
// isn't what is measured: they note themselves when something arrives.
const askAgentsAgain = 50 * time.Millisecond

// agentsEnvironment has the collection of garbage seldom, since it is no part of
// what is compared and would take the processors from what is.
var agentsEnvironment = []string{"GOGC=400"}

// startAgents starts the agents, each of the processes when the one before it has
// all, and waits until all agents have what the world is made of, and bare ones
// their watches.
func (r *inCluster) startAgents(ctx context.Context, flags ...string) (_ *agents, err error) {
	a := &agents{}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	start := func(count int, bare bool) (string, error) {
		name := r.part(fmt.Sprintf("agents-%d", len(a.processes)+1))
		socket := filepath.Join(r.dir, name+".sock")
		argv := append([]string{r.config.Program, "bench", "agents", "--socket=" + socket,
			"--agents=" + strconv.Itoa(count), "--bare=" + strconv.FormatBool(bare),
			"--enable-cilium-endpoint-slice=" + strconv.FormatBool(r.config.EndpointSlices)}, flags...)
		p, err := process.Start(name, r.dir, argv, agentsEnvironment)
		if err == nil {
			a.processes = append(a.processes, p)
		}
		return socket, err
	}
	for left := r.config.Agents - r.config.Bare; left > 0; left -= agentsOfProcess {
		socket, err := start(min(left, agentsOfProcess), false)
		if err != nil {
			return nil, err
		}
		a.sockets = append(a.sockets, socket)
		if err := a.awaitOne(ctx, len(a.sockets)-1, r.world.book); err != nil {
			return nil, err
		}
	}
	if r.config.Bare > 0 {
		socket, err := start(r.config.Bare, true)
		if err != nil {
			return nil, err
		}
		p := a.processes[len(a.processes)-1]
		if err := untilAgents(ctx, p, socket, func(s follower.AgentsStatus) bool { return s.Bare == r.config.Bare }); err != nil {
			return nil, fmt.Errorf("waiting until all bare agents watch: %w", err)
		}
	}
	return a, nil
}

func (a *agents) close() {
	for _, p := range a.processes {
		p.Kill() // nobody needs what they have
	}
}

// await waits until all agents have all that the book says.
func (a *agents) await(ctx context.Context, book *book) error {
	for i := range a.sockets {
		if err := a.awaitOne(ctx, i, book); err != nil {
			return err
		}
	}
	return nil
}

func (a *agents) awaitOne(ctx context.Context, i int, book *book) error {
	sum, rows := book.content()
	var last follower.AgentsStatus
	err := untilAgents(ctx, a.processes[i], a.sockets[i], func(s follower.AgentsStatus) bool {
		last = s
		return s.Having(sum, rows) == len(s.Sums)
	})
	if err != nil {
		return fmt.Errorf("waiting until all agents have all %d rows (%d of %d have; rows: %v): %w",
			rows, last.Having(sum, rows), len(last.Sums), last.Rows, err)
	}
	return nil
}

// untilAgents asks the agents of a process until the answer is right.
func untilAgents(ctx context.Context, p *process.Process, socket string, right func(follower.AgentsStatus) bool) error {
	alive, stop := whileAlive(ctx, p)
	defer stop()
	for {
		if status, err := follower.AskAgents(alive, socket); err == nil && right(status) {
			return nil
		}
		select {
		case <-alive.Done():
			return fmt.Errorf("%s: %w\n%s", p.Name(), context.Cause(alive), p.LogTail())
		case <-time.After(askAgentsAgain):
		}
	}
}

// record has the agents note what arrives from now on.
func (a *agents) record(ctx context.Context) error {
	for _, socket := range a.sockets {
		if err := follower.RecordAgents(ctx, socket); err != nil {
			return err
		}
	}
	return nil
}

// arrivals gives fn what has arrived at each agent.
func (a *agents) arrivals(ctx context.Context, fn func([]follower.Arrival) error) error {
	for _, socket := range a.sockets {
		if err := follower.AskArrivals(ctx, socket, fn); err != nil {
			return err
		}
	}
	return nil
}
