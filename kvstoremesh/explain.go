// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// PartKVStoreMesh is the Part of what a KVStoreMesh says.
const PartKVStoreMesh = "kvstoremesh"

// Explanation is what a KVStoreMesh says about a remote cluster, and which of some
// of its addresses the local agents are given.
type Explanation struct {
	Part    string `json:"part"`
	Cluster string `json:"cluster"` // its own
	Region  string `json:"region,omitempty"`

	Source string `json:"source"`
	// Known: there is a configuration for the source. SourceRegion is what its cluster
	// config says.
	Known        bool   `json:"known"`
	Connected    bool   `json:"connected"`
	SourceRegion string `json:"sourceRegion,omitempty"`
	// Synced: all endpoints that the source had were taken in once.
	Synced  bool   `json:"synced"`
	Trouble string `json:"trouble,omitempty"`
	// Refused counts values of the source that weren't taken, for any reason.
	Refused uint64 `json:"refused,omitempty"`

	Addresses []Address `json:"addresses,omitempty"`
	// EtcdError is why the local etcd wasn't asked.
	EtcdError string `json:"etcdError,omitempty"`
}

// Address is one of them.
type Address struct {
	Address netip.Prefix `json:"address"`
	// Key is where the local agents look for it, and Taken whether it is there.
	Key   string `json:"key"`
	Taken bool   `json:"taken"`
}

// FilterStatus is how much of each remote cluster is left out.
type FilterStatus struct {
	Part    string         `json:"part"`
	Cluster string         `json:"cluster"`
	Region  string         `json:"region,omitempty"`
	Sources []SourceStatus `json:"sources"`
}

// SourceStatus is that of one remote cluster.
type SourceStatus struct {
	Source string `json:"source"`
	Region string `json:"region,omitempty"`
	// Endpoints are taken in, and Skipped are those that aren't, being regional in
	// another region.
	Endpoints int `json:"endpoints"`
	Skipped   int `json:"skipped"`
}

// explainer answers from the table of remote clusters.
type explainer struct {
	cluster, region string
	clusters        tableOf
}

func (x *explainer) explain(txn statedb.ReadTxn, source string, addresses []netip.Prefix) Explanation {
	out := Explanation{Part: PartKVStoreMesh, Cluster: x.cluster, Region: x.region, Source: source}
	row, _, found := x.clusters.Get(txn, state.RemoteClusterByName(source))
	if found {
		out.Known, out.Connected, out.SourceRegion = true, row.Connected, row.Region
		out.Synced, out.Trouble = row.Resources[wire.Endpoints].Synced, row.Trouble()
		for _, n := range row.Refused {
			out.Refused += n
		}
	}
	for _, address := range addresses {
		out.Addresses = append(out.Addresses,
			Address{Address: address, Key: wire.CachePrefix(wire.Endpoints, source) + wire.EndpointKey(address)})
	}
	return out
}

func (x *explainer) status(txn statedb.ReadTxn) FilterStatus {
	out := FilterStatus{Part: PartKVStoreMesh, Cluster: x.cluster, Region: x.region}
	for row := range x.clusters.All(txn) {
		endpoints := row.Resources[wire.Endpoints]
		out.Sources = append(out.Sources, SourceStatus{
			Source: row.Name, Region: row.Region, Endpoints: endpoints.Entries, Skipped: endpoints.Skipped,
		})
	}
	return out
}

// Remarkable says whether anything is left out.
func (s *FilterStatus) Remarkable() bool {
	return slices.ContainsFunc(s.Sources, SourceStatus.remarkable)
}

func (s SourceStatus) remarkable() bool { return s.Skipped > 0 }

// PrintFilterStatus writes a table of some KVStoreMeshes' status. Unless all is set, it
// has only the clusters of which something is left out.
func PrintFilterStatus(w io.Writer, status []FilterStatus, all bool) error {
	table := output.NewTable(w, "CLUSTER", "REGION", "REMOTE", "ITS REGION", "ENDPOINTS", "SKIPPED BY REGION")
	for _, of := range status {
		for _, source := range of.Sources {
			if all || source.remarkable() {
				table.Row(of.Cluster, export.OrDash(of.Region), source.Source,
					export.OrDash(source.Region), source.Endpoints, source.Skipped)
			}
		}
	}
	return table.Flush()
}

// print writes the facts, one a line.
func (e *Explanation) print(w io.Writer) error {
	fmt.Fprintf(w, "%s (region %s) has of %s (region %s):\n", e.Cluster, export.OrDash(e.Region), e.Source, export.OrDash(e.SourceRegion))
	fmt.Fprintf(w, "  known %t, connected %t, endpoints synced %t, values refused %d\n", e.Known, e.Connected, e.Synced, e.Refused)
	if e.Trouble != "" {
		fmt.Fprintf(w, "  trouble: %s\n", e.Trouble)
	}
	if e.EtcdError != "" {
		_, err := fmt.Fprintf(w, "  what etcd has is unknown: %s\n", e.EtcdError)
		return err
	}
	for _, a := range e.Addresses {
		there := "not there"
		if a.Taken {
			there = "there"
		}
		if _, err := fmt.Fprintf(w, "  %s  %s\n", a.Key, there); err != nil {
			return err
		}
	}
	return nil
}

// look finds out which of the addresses the local etcd has.
func (e *Explanation) look(ctx context.Context, client *etcd.Client) error {
	keys := make([]string, 0, len(e.Addresses))
	for _, a := range e.Addresses {
		keys = append(keys, a.Key)
	}
	has, err := client.Existing(ctx, keys)
	if err != nil {
		return err
	}
	for i := range e.Addresses {
		e.Addresses[i].Taken = has[e.Addresses[i].Key]
	}
	return nil
}
