// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// resources are the columns of the table.
var resources = []wire.Resource{wire.Nodes, wire.Identities, wire.Endpoints, wire.Services}

// Row is what one cluster knows of another.
type Row struct {
	Cluster string `json:"cluster"`
	Remote  string `json:"remote"`
	// Connected and Synced hold for both steps, KVStoreMesh's and the agent's.
	Connected bool `json:"connected"`
	Synced    bool `json:"synced"`
	// Entries are what the agent has, by resource.
	Entries map[wire.Resource]int `json:"entries"`
	// Lag is the number of keys by which the agent's state differs from what the
	// remote cluster's etcd holds, less what is skipped by region; -1 if that isn't
	// known.
	Lag     int    `json:"lag"`
	Problem string `json:"problem,omitempty"`
}

// Status asks all processes of a run.
type Status struct {
	layout  Layout
	clients map[string]*etcd.Client
}

// NewStatus prepares to ask; Close ends it.
func NewStatus(layout Layout) (*Status, error) {
	s := &Status{layout: layout, clients: make(map[string]*etcd.Client)}
	for _, place := range layout.Clusters {
		client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{place.Etcd}})
		if err != nil {
			return nil, err
		}
		s.clients[place.Cluster.Name] = client
	}
	return s, nil
}

// Close lets go of the etcds.
func (s *Status) Close() error {
	var errs []error
	for _, client := range s.clients {
		errs = append(errs, client.Close())
	}
	return errors.Join(errs...)
}

// exported counts what each cluster's etcd holds of its own state.
func (s *Status) exported(ctx context.Context) map[string]map[wire.Resource]int {
	out := make(map[string]map[wire.Resource]int)
	for name, client := range s.clients {
		counts := make(map[wire.Resource]int)
		for _, resource := range resources {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			resp, err := client.Etcd().Get(ctx, wire.StatePrefix(resource, name), clientv3.WithPrefix(), clientv3.WithCountOnly())
			cancel()
			if err != nil {
				counts = nil
				break
			}
			counts[resource] = int(resp.Count)
		}
		out[name] = counts
	}
	return out
}

// Rows asks all processes and gives a row for each pair of clusters.
func (s *Status) Rows(ctx context.Context) []Row {
	exported := s.exported(ctx)
	var rows []Row
	for _, place := range s.layout.Clusters {
		replicated, meshErr := remoteClusters(place.Shells[partKVStoreMesh])
		known, agentErr := remoteClusters(place.Shells[partAgent])
		for _, remote := range s.layout.remotes(place) {
			name := remote.Cluster.Name
			row := newRow(place.Cluster.Name, name, replicated[name], known[name], exported[name])
			switch {
			case meshErr != nil:
				row.Problem = "kvstoremesh: " + shorten(meshErr)
			case agentErr != nil:
				row.Problem = "agent: " + shorten(agentErr)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func newRow(cluster, remote string, mesh, agent state.RemoteCluster, exported map[wire.Resource]int) Row {
	row := Row{
		Cluster: cluster, Remote: remote,
		Connected: mesh.Connected && agent.Connected,
		Synced:    mesh.Ready && agent.Ready,
		Entries:   make(map[wire.Resource]int),
		Problem:   cmp.Or(mesh.Trouble(), agent.Trouble()),
	}
	for _, resource := range resources {
		have := agent.Resources[resource].Entries
		row.Entries[resource] = have
		want := exported[resource] - mesh.Resources[resource].Skipped
		row.Lag += max(have-want, want-have)
	}
	if exported == nil {
		row.Lag = -1
	}
	return row
}

// Report is all that "waggle status" shows of a run.
type Report struct {
	Remotes    []Row       `json:"remotes"`
	Datastores []Datastore `json:"datastores"`
	Filters    Filters     `json:"filters"`
	// Processes says how each is, and why it isn't well if it isn't.
	Processes []ProcessStatus `json:"processes"`
}

// Report asks for all of it.
func (s *Status) Report(ctx context.Context) *Report {
	return &Report{Remotes: s.Rows(ctx), Datastores: s.Datastores(), Filters: s.Filters(), Processes: s.Processes()}
}

// Print writes it as text. What filters leave out is shown where they do, or always.
func (r *Report) Print(w io.Writer, always bool) error {
	if err := Print(w, r.Remotes); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := PrintDatastores(w, r.Datastores, time.Now()); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := PrintOnDemand(w, r.Processes); err != nil {
		return err
	}
	if err := PrintProcesses(w, r.Processes, time.Now()); err != nil {
		return err
	}
	return r.Filters.Print(w, always, false)
}

// Settled says whether everything is synced, with nothing behind.
func Settled(rows []Row) bool {
	for _, row := range rows {
		if !row.Connected || !row.Synced || row.Lag != 0 {
			return false
		}
	}
	return true
}

// Print writes the table.
func Print(w io.Writer, rows []Row) error {
	table := output.NewTable(w, "CLUSTER", "REMOTE", "CONNECTED", "SYNCED", "NODES", "IDENTITIES", "ENDPOINTS", "SERVICES", "LAG", "")
	for _, row := range rows {
		cells := []any{row.Cluster, row.Remote, output.YesNo(row.Connected), output.YesNo(row.Synced)}
		for _, resource := range resources {
			cells = append(cells, row.Entries[resource])
		}
		lag := "unknown"
		if row.Lag >= 0 {
			lag = strconv.Itoa(row.Lag)
		}
		table.Row(append(cells, lag, row.Problem)...)
	}
	return table.Flush()
}

func shorten(err error) string {
	if errors.Is(err, errAway) {
		return errAway.Error()
	}
	return err.Error()
}
