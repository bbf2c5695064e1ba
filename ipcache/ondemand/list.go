// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// List is what is resolved on demand, and what isn't and why.
type List struct {
	Cluster string       `json:"cluster"`
	Entries []ListedRow  `json:"entries"`
	Refused []CIDR       `json:"refusedCIDRs"`
	Excess  []Excess     `json:"excessCIDRs"`
	Blind   []string     `json:"blindFor"`
	Away    []ListedAway `json:"away"`
	// Waiting counts the lookups that wait for their turn.
	Waiting int `json:"waiting"`
}

// ListedRow is a row of the table, and how long ago the kernel saw a packet of its
// address.
type ListedRow struct {
	Row
	// IdleSeconds are since the last packet; -1 if there was none yet, or if nobody
	// would know.
	IdleSeconds float64 `json:"idleSeconds"`
}

// ListedAway is a cluster that a resolver leaves alone since lookups have failed.
type ListedAway struct {
	Resolver string `json:"resolver"`
	Cluster  string `json:"cluster"`
}

// List reads the table and the kernel. Rows are in the order of kinds and addresses.
func (s *Service) List() (List, error) {
	e := s.engine
	if e == nil {
		return List{}, errOff
	}
	seen, err := e.kernel.LastSeen()
	if err != nil {
		return List{}, fmt.Errorf("reading when addresses were last used: %w", err)
	}
	now := e.monotonic()
	e.mu.Lock()
	list := List{
		Cluster: e.local, Entries: []ListedRow{}, Away: []ListedAway{}, Waiting: e.queue.len(),
		Refused: append([]CIDR{}, e.cidrs.refused...), Blind: append([]string{}, e.blindClusters...),
		Excess: append([]Excess{}, e.excessive...),
	}
	e.mu.Unlock()
	txn := e.db.ReadTxn()
	for row := range e.table.All(txn) {
		if row.Kind == KindEndpoint {
			ep, _, found := e.tables.Endpoints.Get(txn, state.EndpointByPrefix(state.PrefixOf(row.Addr)))
			if !found || ep.Origin().Source != state.SourceOnDemand {
				continue // it was pushed since, and is dropped when its time is over
			}
		}
		listed := ListedRow{Row: *row, IdleSeconds: -1}
		if at := seen[row.Addr]; at > 0 {
			listed.IdleSeconds = max(now-at, 0).Round(time.Millisecond).Seconds()
		}
		list.Entries = append(list.Entries, listed)
	}
	slices.SortFunc(list.Entries, func(a, b ListedRow) int {
		return cmp.Or(-cmp.Compare(a.Kind, b.Kind), a.Addr.Compare(b.Addr), cmp.Compare(a.Identity, b.Identity))
	})
	for _, r := range e.chain.others {
		for _, cluster := range r.away() {
			list.Away = append(list.Away, ListedAway{Resolver: r.Name(), Cluster: cluster})
		}
	}
	return list, nil
}

// Print writes a table, and below it what isn't looked at and why.
func (l *List) Print(w io.Writer) error {
	table := output.NewTable(w, "KIND", "ADDRESS", "IDENTITY", "CLUSTER", "POD", "FROM", "UNTIL", "IDLE", "REASON")
	for i := range l.Entries {
		row := &l.Entries[i]
		address, identity, pod, idle, reason := "-", "-", "-", "-", "-"
		if row.Addr.IsValid() {
			address = row.Addr.String()
		}
		if row.Identity != 0 {
			identity = strconv.FormatUint(uint64(row.Identity), 10)
		}
		if row.Pod != "" {
			pod = printable(row.Namespace + "/" + row.Pod)
		}
		if row.Reason != "" {
			reason = filter.Printable(row.Reason)
		}
		if row.IdleSeconds >= 0 {
			idle = time.Duration(row.IdleSeconds * float64(time.Second)).Round(time.Second).String()
		}
		table.Row(row.Kind, address, identity, printable(row.Cluster), pod,
			printable(row.From), row.Until.UTC().Format(time.RFC3339), idle, reason)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, cidr := range l.Refused {
		fmt.Fprintf(w, "Not used: %s\n", cidr)
	}
	for _, excess := range l.Excess {
		fmt.Fprintf(w, "Not used: %d CIDRs of cluster %q, which has more than %d\n", excess.Count, excess.Cluster, maxClaims)
	}
	for _, cluster := range l.Blind {
		fmt.Fprintf(w, "Blind for cluster %q: its nodes have no pod CIDR, and --%s doesn't name it\n", cluster, flagPodCIDRs)
	}
	for _, away := range l.Away {
		fmt.Fprintf(w, "Left alone for a while: cluster %q by %s\n", away.Cluster, printable(away.Resolver))
	}
	if l.Waiting > 0 {
		fmt.Fprintf(w, "%d lookups wait for their turn\n", l.Waiting)
	}
	return nil
}
