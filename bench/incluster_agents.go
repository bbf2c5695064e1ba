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
	processes []*process.Process
	sockets   []string
}

// askAgentsAgain is the time between two questions to the agents of a process. It
// isn't what is measured: they note themselves when something arrives.
const askAgentsAgain = 50 * time.Millisecond

// agentsEnvironment has the collection of garbage seldom, since it is no part of
// what is compared and would take the processors from what is.
var agentsEnvironment = []string{"GOGC=400"}

// startAgents starts the agents, each of the processes when the one before it has
// all, and waits until all agents have what the world is made of.
func (r *inCluster) startAgents(ctx context.Context, flags ...string) (_ *agents, err error) {
	a := &agents{}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for left := r.config.Agents; left > 0; left -= agentsOfProcess {
		name := r.part(fmt.Sprintf("agents-%d", len(a.processes)+1))
		socket := filepath.Join(r.dir, name+".sock")
		argv := append([]string{r.config.Program, "bench", "agents", "--socket=" + socket,
			"--agents=" + strconv.Itoa(min(left, agentsOfProcess)),
			"--enable-cilium-endpoint-slice=" + strconv.FormatBool(r.config.EndpointSlices)}, flags...)
		p, err := process.Start(name, r.dir, argv, agentsEnvironment)
		if err != nil {
			return nil, err
		}
		a.processes, a.sockets = append(a.processes, p), append(a.sockets, socket)
		if err := a.awaitOne(ctx, len(a.processes)-1, r.world.book); err != nil {
			return nil, err
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
	for i := range a.processes {
		if err := a.awaitOne(ctx, i, book); err != nil {
			return err
		}
	}
	return nil
}

func (a *agents) awaitOne(ctx context.Context, i int, book *book) error {
	sum, rows := book.content()
	alive, stop := whileAlive(ctx, a.processes[i])
	defer stop()
	var last follower.AgentsStatus
	for {
		status, err := follower.AskAgents(alive, a.sockets[i])
		if err == nil {
			last = status
			if last.Having(sum, rows) == len(last.Sums) {
				return nil
			}
		}
		select {
		case <-alive.Done():
			return fmt.Errorf("waiting until all agents of %s have all %d rows (%d of %d have; rows: %v): %w\n%s", a.processes[i].Name(),
				rows, last.Having(sum, rows), len(last.Sums), last.Rows, context.Cause(alive), a.processes[i].LogTail())
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
