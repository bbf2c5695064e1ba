// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// TableName is the table of what was resolved, as `db/show` knows it, after the prefix that
// a hive has for the names of our tables.
const TableName = "ondemand"

// Kind says what a row of the table is.
type Kind string

const (
	// KindEndpoint is an address with an endpoint.
	KindEndpoint Kind = "endpoint"
	// KindIdentity is an identity that packets carry.
	KindIdentity Kind = "identity"
	// KindAbsent is an address at which there is nothing, as far as was to be found.
	KindAbsent Kind = "absent"
)

// Row is a row of the table "ondemand": what a lookup has brought, or that it has
// brought nothing. Rows are immutable once inserted.
type Row struct {
	Kind Kind `json:"kind" yaml:"kind"`
	// Addr is not valid for a KindIdentity.
	Addr      netip.Addr `json:"addr,omitzero" yaml:"addr,omitempty"`
	Identity  uint32     `json:"identity,omitempty" yaml:"identity,omitempty"`
	Cluster   string     `json:"cluster" yaml:"cluster"`
	ClusterID uint32     `json:"clusterID" yaml:"clusterID"`
	Namespace string     `json:"namespace,omitempty" yaml:"namespace,omitempty"`
	Pod       string     `json:"pod,omitempty" yaml:"pod,omitempty"`
	// From is the resolver that knew, or for a KindAbsent the Outcome; Reason is what was
	// refused and why, or which identity of the endpoint isn't known.
	From   string    `json:"from" yaml:"from"`
	Reason string    `json:"reason,omitempty" yaml:"reason,omitempty"`
	Since  time.Time `json:"since" yaml:"since"`
	// Until is when it is looked at again.
	Until time.Time `json:"until" yaml:"until"`
}

// key is the address, or "identity/" and the number.
func (r *Row) key() string {
	if r.Kind == KindIdentity {
		return "identity/" + strconv.FormatUint(uint64(r.Identity), 10)
	}
	return r.Addr.String()
}

// TableHeader names the columns for `db/show`.
func (*Row) TableHeader() []string {
	return []string{"Kind", "Address", "Identity", "Cluster", "Pod", "From", "Since", "Until", "Reason"}
}

// TableRow gives the values of the columns, for a terminal: see printable.
func (r *Row) TableRow() []string {
	address, identity, pod := "", "", ""
	if r.Addr.IsValid() {
		address = r.Addr.String()
	}
	if r.Identity != 0 {
		identity = strconv.FormatUint(uint64(r.Identity), 10)
	}
	if r.Pod != "" {
		pod = printable(r.Namespace + "/" + r.Pod)
	}
	return []string{string(r.Kind), address, identity, printable(r.Cluster), pod, printable(r.From),
		r.Since.UTC().Format(time.RFC3339), r.Until.UTC().Format(time.RFC3339), filter.Printable(r.Reason)}
}

// printable is a name for a terminal, quoted if it has what would look like another
// column or line, or what a terminal would act on: it is the remote cluster's to choose.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r == ' ' || r == '"' || !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

var rowByKey = statedb.Index[*Row, string]{
	Name:       "key",
	FromObject: func(r *Row) index.KeySet { return index.NewKeySet(index.String(r.key())) },
	FromKey:    index.String,
	FromString: index.FromString,
	Unique:     true,
}

// RowByAddr asks for what is known of an address.
func RowByAddr(addr netip.Addr) statedb.Query[*Row] { return rowByKey.Query(addr.String()) }

type tableParams struct {
	cell.In

	DB     *statedb.DB
	Prefix state.TablePrefix `optional:"true"`
}

func provideTable(p tableParams) (statedb.RWTable[*Row], error) { return newTable(p.DB, p.Prefix) }

// newTable registers the table.
func newTable(db *statedb.DB, prefix state.TablePrefix) (statedb.RWTable[*Row], error) {
	name := string(prefix) + TableName
	table, err := statedb.NewTable(db, name, rowByKey)
	if err != nil {
		return nil, fmt.Errorf("registering table %q: %w", name, err)
	}
	return table, nil
}

func (n *carried) row() *Row {
	return &Row{
		Kind: KindIdentity, Identity: n.id, Cluster: n.origin.Cluster, ClusterID: n.origin.ClusterID,
		From: n.from, Since: n.since, Until: n.until,
	}
}

func (n *negative) row(since time.Time) *Row {
	return &Row{
		Kind: KindAbsent, Addr: n.addr, Identity: n.identity, Cluster: n.owner.cluster, ClusterID: n.owner.clusterID,
		From: string(n.outcome), Reason: n.reason, Since: since, Until: n.until,
	}
}
