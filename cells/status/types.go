// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package status says how one process is: what it reads, how far it is behind, what it
// writes, and why whatever isn't well isn't. "waggle status" asks for it, and the
// command waggle/status in the shell of any hive, the agent's included.
//
//	types.go    the report
//	collect.go  how it is made, of tables and counters
//	print.go    the report as text
//	since.go    since when what isn't well isn't
//	cell.go     the command
package status

import (
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Report is how a process is. What it doesn't have is left out.
type Report struct {
	// Cluster is the process's own.
	Cluster string `json:"cluster,omitempty"`
	// Healthy says that there are no Problems.
	Healthy  bool      `json:"healthy"`
	Problems []Problem `json:"problems"`

	Clusters  []Cluster  `json:"clusters,omitempty"`
	Datastore *Datastore `json:"datastore,omitempty"`
	Exports   []Export   `json:"exports,omitempty"`
	Etcd      *Etcd      `json:"etcd,omitempty"`
	Lists     *Lists     `json:"lists,omitempty"`
	OnDemand  *OnDemand  `json:"onDemand,omitempty"`
	IPCache   *IPCache   `json:"ipcache,omitempty"`
}

// Problem is one thing that isn't as it should be.
type Problem struct {
	// Subject is who has it: a module of the hive and what in it, or one of the parts
	// of the report.
	Subject string `json:"subject"`
	Reason  string `json:"reason"`
	// Since is when it began; nil if that isn't known.
	Since *time.Time `json:"since,omitempty"`
}

// Source is what is known of a cluster that is read.
type Source struct {
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	// Synced: everything that is required was read in whole.
	Synced bool `json:"synced"`
	// Since is when Connected last changed, LastEvent when data last arrived.
	Since     *time.Time                 `json:"since,omitempty"`
	LastEvent *time.Time                 `json:"lastEvent,omitempty"`
	Resources map[wire.Resource]Resource `json:"resources"`
	// Refused counts values that weren't taken in since the start, by reason.
	Refused  map[wire.Reason]uint64 `json:"refused,omitempty"`
	Failures uint64                 `json:"failures"`
	Problem  string                 `json:"problem,omitempty"`
}

// Cluster is a remote cluster.
type Cluster struct {
	Source
	ID     uint32 `json:"id"`
	Region string `json:"region,omitempty"`
	// Cached: what is read is a KVStoreMesh's copy.
	Cached bool `json:"cached"`
	// Conflicts counts addresses that it claims and another one holds, and HeldBack the
	// endpoints that wait for their identity now.
	Conflicts uint64 `json:"conflicts,omitempty"`
	HeldBack  int    `json:"heldBack,omitempty"`
}

// Datastore is where this cluster's own state comes from.
type Datastore struct {
	Source
	// Kind is the --datastore, and Backend what is read.
	Kind    string `json:"kind"`
	Backend string `json:"backend,omitempty"`
}

// Resource is how far one resource of a source is.
type Resource struct {
	Synced  bool `json:"synced"`
	Entries int  `json:"entries"`
	// Skipped isn't taken, being regional in another region.
	Skipped int `json:"skipped,omitempty"`
	// Lists counts how often it was listed since the start: more than once means that
	// reconnects don't do.
	Lists uint64 `json:"lists"`
}

// Export is what becomes of one resource on its way to other clusters: where it is,
// what is kept at home, and what can't be encoded.
type Export struct {
	Resource  wire.Resource `json:"resource"`
	Synced    bool          `json:"synced"`
	Pushed    int           `json:"pushed"`
	OnDemand  int           `json:"onDemand,omitempty"`
	NotGlobal int           `json:"notGlobal,omitempty"`
	Refused   int           `json:"refused,omitempty"`
}

// Etcd is what is written to the local etcd.
type Etcd struct {
	// Queue counts the keys to be written, Refused those of them that etcd refuses.
	Queue   int `json:"queue"`
	Refused int `json:"refused"`
	// LagSeconds is for how long the oldest of the others has waited.
	LagSeconds float64 `json:"lagSeconds"`
	// Commits are transactions made since the start, Changes what they held, and
	// Failures those that failed.
	Commits  uint64 `json:"commits"`
	Changes  uint64 `json:"changes"`
	Failures uint64 `json:"failures"`
	Leases   int    `json:"leases"`
	// Keys are in etcd, in so many Prefixes, of which Incomplete aren't whole, or are of
	// a resource that their source doesn't have.
	Keys       int `json:"keys"`
	Prefixes   int `json:"prefixes"`
	Incomplete int `json:"incomplete"`
}

// Lists is what an embedded etcd serves.
type Lists struct {
	Open      int    `json:"open"`
	Served    uint64 `json:"served"`
	Postponed uint64 `json:"postponed"`
}

// OnDemand is what on-demand resolution has.
type OnDemand struct {
	Enabled bool `json:"enabled"`
	// Entries counts what lookups have brought, by kind.
	Entries map[string]int `json:"entries,omitempty"`
	Waiting int            `json:"waiting"`
	// RefusedCIDRs counts pod CIDRs that aren't used, and Blind are clusters of which
	// none is known. Away are clusters that aren't asked for a while.
	RefusedCIDRs int      `json:"refusedCIDRs"`
	Blind        []string `json:"blindFor,omitempty"`
	Away         []string `json:"away,omitempty"`
}

// IPCache is the map.
type IPCache struct {
	Map      string `json:"map"`
	Capacity int    `json:"capacity"`
	// Wanted counts what the tables want in it, Overflow what doesn't fit, and Failed
	// what isn't as it should be for another reason.
	Wanted   int `json:"wanted"`
	Overflow int `json:"overflow"`
	Failed   int `json:"failed"`
}
