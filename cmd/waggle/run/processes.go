// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/status"
)

// ErrUnhealthy says that what was asked about isn't well; why is in what was printed.
var ErrUnhealthy = errors.New("not healthy")

// ProcessStatus is how one process of a run is.
type ProcessStatus struct {
	Cluster string `json:"cluster"`
	Part    string `json:"part"`
	// Status is nil if the process couldn't be asked, with the reason as Problem, and of
	// a plain etcd, which is asked only whether it is there.
	Status  *status.Report `json:"status,omitempty"`
	Problem string         `json:"problem,omitempty"`
}

// Healthy says whether it is there and well.
func (p *ProcessStatus) Healthy() bool {
	return p.Problem == "" && (p.Status == nil || p.Status.Healthy)
}

// statusOf asks one process.
func statusOf(socket string) (*status.Report, error) {
	var report status.Report
	if err := askJSON(socket, status.Command+" -o json", &report); err != nil {
		return nil, err
	}
	return &report, nil
}

// Processes asks all processes of a run how they are.
func (s *Status) Processes() []ProcessStatus {
	var all []ProcessStatus
	for _, place := range s.layout.Clusters {
		for _, part := range Parts {
			socket, ok := place.Shells[part]
			if !ok {
				continue
			}
			p := ProcessStatus{Cluster: place.Cluster.Name, Part: part}
			var err error
			if part == partEtcd {
				_, err = ask(socket, "help")
			} else {
				p.Status, err = statusOf(socket)
			}
			if err != nil {
				p.Problem = shorten(err)
			}
			all = append(all, p)
		}
	}
	return all
}

// PrintProcesses writes a line for each, and below it the reasons for all that isn't
// well.
func PrintProcesses(w io.Writer, all []ProcessStatus, now time.Time) error {
	table := output.NewTable(w, "CLUSTER", "PROCESS", "HEALTH", "QUEUE", "BEHIND", "COMMITS", "FAILED", "KEYS", "LEASES")
	for i := range all {
		p := &all[i]
		health := "OK"
		switch {
		case p.Problem != "":
			health = p.Problem
		case !p.Healthy():
			health = fmt.Sprintf("not OK (%d)", len(p.Status.Problems))
		}
		if p.Status == nil || p.Status.Etcd == nil {
			table.Row(p.Cluster, p.Part, health, "-", "-", "-", "-", "-", "-")
			continue
		}
		e := p.Status.Etcd
		table.Row(p.Cluster, p.Part, health, e.Queue, status.Seconds(e.LagSeconds), e.Commits, e.Failures, e.Keys, e.Leases)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i := range all {
		p := &all[i]
		if p.Status == nil || p.Status.Healthy {
			continue
		}
		fmt.Fprintf(w, "\n%s of %s:\n", p.Part, p.Cluster)
		if err := p.Status.PrintProblems(w, now); err != nil {
			return err
		}
	}
	return nil
}

// PrintOnDemand writes what agents have resolved on demand; nothing where none does that.
func PrintOnDemand(w io.Writer, all []ProcessStatus) error {
	all = slices.DeleteFunc(slices.Clone(all), func(p ProcessStatus) bool {
		return p.Status == nil || p.Status.OnDemand == nil || !p.Status.OnDemand.Enabled
	})
	if len(all) == 0 {
		return nil
	}
	table := output.NewTable(w, "CLUSTER", "ON DEMAND", "WAITING", "REFUSED CIDRS", "BLIND FOR", "AWAY")
	for i := range all {
		o := all[i].Status.OnDemand
		table.Row(all[i].Cluster, o.Resolved(), o.Waiting, o.RefusedCIDRs,
			cmp.Or(strings.Join(o.Blind, ","), "-"), cmp.Or(strings.Join(o.Away, ","), "-"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// Process is what one process says that needn't be part of a run.
type Process struct {
	Socket string `json:"socket"`
	// Status is how it is, Filters what it leaves out.
	Status  *status.Report `json:"status,omitempty"`
	Filters Filters        `json:"filters"`
	// Problem is why it couldn't be asked for one or the other.
	Problem string `json:"problem,omitempty"`
}

// AskProcesses asks processes for all that they say. The error joins those of the ones
// that can't be asked, and ErrUnhealthy if one isn't well.
func AskProcesses(sockets []string) (all []Process, err error) {
	for _, socket := range sockets {
		p := Process{Socket: socket}
		var problem error
		if p.Status, problem = statusOf(socket); problem == nil {
			p.Filters, problem = filtersOf(socket)
		}
		switch {
		case problem != nil:
			p.Problem = problem.Error()
			err = errors.Join(err, fmt.Errorf("%s: %w", socket, problem))
		case !p.Status.Healthy:
			err = errors.Join(err, fmt.Errorf("%s: %w", socket, ErrUnhealthy))
		}
		all = append(all, p)
	}
	return all, err
}

// PrintProcess writes it as text. Filters are told of where they do anything, or always.
func PrintProcess(w io.Writer, p *Process, always bool) error {
	if p.Problem != "" {
		_, err := fmt.Fprintln(w, p.Problem)
		return err
	}
	if err := p.Status.Print(w, time.Now()); err != nil {
		return err
	}
	exporter := len(p.Filters.Exporters) > 0
	// Of an exporter's resources there is nothing else to tell.
	return p.Filters.Print(w, always || exporter, exporter)
}

// Unhealthy is nil, or an ErrUnhealthy for each process that isn't well.
func (r *Report) Unhealthy() error {
	var errs []error
	for i := range r.Processes {
		switch p := &r.Processes[i]; {
		case p.Healthy():
		case p.Problem != "":
			errs = append(errs, fmt.Errorf("%s of %s: %w: %s", p.Part, p.Cluster, ErrUnhealthy, p.Problem))
		case len(p.Status.Problems) == 0:
			errs = append(errs, fmt.Errorf("%s of %s: %w", p.Part, p.Cluster, ErrUnhealthy))
		default: // the others are in what was printed
			errs = append(errs, fmt.Errorf("%s of %s: %w: %s", p.Part, p.Cluster, ErrUnhealthy, p.Status.Problems[0].Reason))
		}
	}
	return errors.Join(errs...)
}
