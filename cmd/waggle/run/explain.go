// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// PodName names a pod of a mesh.
type PodName struct{ Cluster, Namespace, Pod string }

// objectName is what Kubernetes lets such names be. What passes is safe in a
// command line of a process's shell.
var objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// ParsePodName reads "cluster/namespace/pod".
func ParsePodName(text string) (PodName, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return PodName{}, fmt.Errorf("%q: must be CLUSTER/NAMESPACE/POD", text)
	}
	for i, what := range []string{"cluster", "namespace", "pod"} {
		if !objectName.MatchString(parts[i]) {
			return PodName{}, fmt.Errorf("%q: %q can't be the name of a %s", text, parts[i], what)
		}
	}
	return PodName{parts[0], parts[1], parts[2]}, nil
}

// String is "cluster/namespace/pod".
func (n PodName) String() string { return n.Cluster + "/" + n.Namespace + "/" + n.Pod }

// Outcome is what became of an address in another cluster.
type Outcome string

// The outcomes.
const (
	OutcomeSynced       Outcome = "synced"
	OutcomeNotPushed    Outcome = "not pushed"
	OutcomeSkipped      Outcome = "skipped by region"
	OutcomeNotConnected Outcome = "not connected"
	OutcomePending      Outcome = "not there"
	OutcomeLeaving      Outcome = "still there"
	OutcomeUnknown      Outcome = "unknown"
)

// Arrival is an address in another cluster.
type Arrival struct {
	Address netip.Prefix `json:"address"`
	Outcome Outcome      `json:"outcome"`
	Why     string       `json:"why,omitempty"`
}

// Reader is another cluster, by what its KVStoreMesh says.
type Reader struct {
	Cluster  string                   `json:"cluster"`
	Says     *kvstoremesh.Explanation `json:"says,omitempty"`
	Arrivals []Arrival                `json:"arrivals,omitempty"`
	Problem  string                   `json:"problem,omitempty"`
}

// Explanation is why a pod is or isn't synced, and to whom.
type Explanation struct {
	Source  export.Explanation `json:"source"`
	Readers []Reader           `json:"readers"`
}

// filterProcess is one to ask about filters.
type filterProcess struct{ part, cluster, socket string }

// filterProcesses are those of a run.
func (l Layout) filterProcesses() (all []filterProcess) {
	for _, place := range l.Clusters {
		all = append(all,
			filterProcess{export.PartExporter, place.Cluster.Name, place.Shells[partExporter]},
			filterProcess{kvstoremesh.PartKVStoreMesh, place.Cluster.Name, place.Shells[partKVStoreMesh]})
	}
	return all
}

// identify finds out what listens at some sockets. The error joins those of the
// sockets that can't tell.
func identify(sockets []string) (all []filterProcess, err error) {
	for _, socket := range sockets {
		p := filterProcess{socket: socket}
		var who struct{ Part, Cluster string }
		if problem := askJSON(socket, "filter/status -o json", &who); problem != nil {
			err = errors.Join(err, fmt.Errorf("%s can't tell about filters, which exporters and KVStoreMeshes do: %w", socket, problem))
			continue
		}
		p.part, p.cluster = who.Part, who.Cluster
		all = append(all, p)
	}
	return all, err
}

// askJSON runs a command that answers with one JSON value.
func askJSON(socket, command string, into any) error {
	return askJSONWithin(askTimeout, socket, command, into)
}

func askJSONWithin(timeout time.Duration, socket, command string, into any) error {
	out, err := askWithin(timeout, socket, command)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("reading the answer to %q: %w", command, err)
	}
	return nil
}

// ErrCantTell says that an explanation is missing or not whole.
var ErrCantTell = errors.New("can't tell")

// ExplainRun asks the processes of a run.
func ExplainRun(layout Layout, name PodName) (*Explanation, error) {
	return explain(layout.filterProcesses(), name)
}

// ExplainProcesses asks those whose shells have these sockets.
func ExplainProcesses(sockets []string, name PodName) (*Explanation, error) {
	processes, unknown := identify(sockets)
	answer, err := explain(processes, name)
	if unknown != nil {
		unknown = fmt.Errorf("%w: %w", ErrCantTell, unknown)
	}
	return answer, errors.Join(err, unknown)
}

// explain gives what is known, and an error that says what isn't.
func explain(processes []filterProcess, name PodName) (*Explanation, error) {
	at := slices.IndexFunc(processes, func(p filterProcess) bool {
		return p.part == export.PartExporter && p.cluster == name.Cluster
	})
	if at < 0 {
		var known []string
		for _, p := range processes {
			if p.part == export.PartExporter {
				known = append(known, p.cluster)
			}
		}
		return nil, fmt.Errorf("%w: no exporter of a cluster %q is asked; there is %s", ErrCantTell, name.Cluster,
			cmp.Or(strings.Join(known, ", "), "none"))
	}
	answer := &Explanation{}
	source := &answer.Source
	if err := askJSONWithin(explainTimeout, processes[at].socket, "filter/explain -o json "+name.Namespace+"/"+name.Pod, source); err != nil {
		return nil, fmt.Errorf("%w: %s's exporter: %w", ErrCantTell, name.Cluster, err)
	}
	switch {
	case len(source.Waits) > 0:
		return answer, fmt.Errorf("%w yet: %s's exporter has not read all of its cluster (%s)", ErrCantTell,
			name.Cluster, strings.Join(source.Waits, ", "))
	case !source.PodKnown && !source.NamespaceKnown:
		return answer, fmt.Errorf("%w: cluster %s has no namespace %q", ErrCantTell, name.Cluster, name.Namespace)
	case !source.PodKnown:
		return answer, fmt.Errorf("%w: cluster %s has no endpoint of a pod %q in namespace %s, as far as its exporter knows "+
			"(pods in the host's network never have one)", ErrCantTell, name.Cluster, name.Pod, name.Namespace)
	}
	var problems []error
	if source.EtcdError != "" {
		problems = append(problems, fmt.Errorf("%w what %s's etcd has: %s", ErrCantTell, name.Cluster, source.EtcdError))
	}
	for _, p := range processes {
		if p.part != kvstoremesh.PartKVStoreMesh || p.cluster == name.Cluster || len(held(source)) == 0 {
			continue
		}
		reader := askReader(p, source)
		if reader.Problem != "" {
			problems = append(problems, fmt.Errorf("%w what %s has: %s", ErrCantTell, p.cluster, reader.Problem))
		}
		answer.Readers = append(answer.Readers, reader)
	}
	return answer, errors.Join(problems...)
}

// held are the addresses that are the pod's, and not another one's for now.
func held(source *export.Explanation) (all []export.EndpointExplanation) {
	for _, e := range source.Endpoints {
		if e.Holder == "" {
			all = append(all, e)
		}
	}
	return all
}

func askReader(p filterProcess, source *export.Explanation) Reader {
	reader := Reader{Cluster: p.cluster}
	command := "filter/explain -o json " + source.Cluster
	for _, e := range held(source) {
		command += " " + wire.EndpointKey(e.Address)
	}
	var says kvstoremesh.Explanation
	if err := askJSONWithin(explainTimeout, p.socket, command, &says); err != nil {
		reader.Problem = "its KVStoreMesh: " + shorten(err)
		return reader
	}
	reader.Says, reader.Problem = &says, says.EtcdError
	for _, a := range says.Addresses {
		reader.Arrivals = append(reader.Arrivals, arrival(source.Fate, source.Scope, &says, a))
	}
	return reader
}

// arrival holds what a KVStoreMesh has of an address against what the rules say.
func arrival(fate filter.Fate, scope string, says *kvstoremesh.Explanation, a kvstoremesh.Address) Arrival {
	out := Arrival{Address: a.Address}
	of := wire.ScopeGlobal
	if scope == wire.ScopeRegional.String() {
		of = wire.ScopeRegional
	}
	crosses, why := filter.ExplainCrossing(of, says.SourceRegion, says.Region)
	away := ""
	if !says.Connected {
		away = "it isn't connected to " + says.Source
		if says.Trouble != "" {
			away += ": " + filter.Printable(says.Trouble)
		}
	}
	if !says.Known {
		away = "it has no configuration for " + says.Source
	}
	if fate != filter.Pushed {
		crosses, why = false, "the source doesn't push it"
	}
	switch {
	case says.EtcdError != "":
		out.Outcome, out.Why = OutcomeUnknown, says.EtcdError
	case a.Taken && crosses:
		out.Outcome, out.Why = OutcomeSynced, joinReasons(why, away)
	case a.Taken:
		out.Outcome, out.Why = OutcomeLeaving, joinReasons("it isn't taken away yet: "+why, away)
	case fate != filter.Pushed:
		out.Outcome, out.Why = OutcomeNotPushed, why
	case !crosses:
		out.Outcome, out.Why = OutcomeSkipped, why
	case away != "":
		out.Outcome, out.Why = OutcomeNotConnected, away
	case !says.Synced:
		out.Outcome, out.Why = OutcomePending, joinReasons("it hasn't all endpoints of "+says.Source+" yet", filter.Printable(says.Trouble))
	default:
		out.Outcome, out.Why = OutcomePending, joinReasons("it should be, soon", filter.Printable(says.Trouble))
		if says.Refused > 0 {
			out.Why = joinReasons(out.Why, fmt.Sprintf("%d values of %s are refused: see 'db/show remote-clusters' there", says.Refused, says.Source))
		}
	}
	return out
}

func joinReasons(first, second string) string {
	if second == "" {
		return first
	}
	return first + "; " + second
}

// Print writes the explanation as text: the source's, and then a line for each
// other cluster, or for each address where they differ.
func (e *Explanation) Print(w io.Writer) error {
	if err := e.Source.Print(w); err != nil {
		return err
	}
	table := output.NewTable(w)
	for _, reader := range e.Readers {
		name := reader.Cluster
		if reader.Says != nil && reader.Says.Region != "" {
			name += " (" + reader.Says.Region + ")"
		}
		if len(reader.Arrivals) == 0 {
			table.Row("  => "+name, "unknown: "+reader.Problem)
			continue
		}
		first := reader.Arrivals[0]
		if !slices.ContainsFunc(reader.Arrivals, func(a Arrival) bool { return a.Outcome != first.Outcome || a.Why != first.Why }) {
			table.Row("  => "+name, first)
			continue
		}
		for _, a := range reader.Arrivals {
			table.Row("  => "+name+" "+wire.EndpointKey(a.Address), a)
		}
	}
	return table.Flush()
}

// String is the outcome with its reason.
func (a Arrival) String() string {
	if a.Why == "" {
		return string(a.Outcome)
	}
	return string(a.Outcome) + ": " + a.Why
}
