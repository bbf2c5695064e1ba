// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
	"github.com/cilium/statedb/reconciler"

	"github.com/waggle-mesh/waggle/cells/state"
)

// TableName is the name of the table of the map's wanted entries.
const TableName = "ipcache"

// Row is a row of the table "ipcache": one wanted entry of the map, keyed by its
// prefix, and whether the map has it. Rows are immutable.
//
// A Row is 80 bytes, and takes 355 with its place in the table
// (BenchmarkTableMemory). There is one for each endpoint of the mesh, so the
// reconciler's status is kept in a shorter form than its own.
type Row struct {
	Entry

	owner *owner
	// failure is the last error, nil if there was none.
	failure *string
	// at is when the status last changed, in nanoseconds since 1970. While the
	// row is pending it also identifies the change (see deriver.stamp).
	at     int64
	status reconciler.StatusKind
	source state.Source
	kind   kind
}

// Status is whether the map has the entry.
func (r *Row) Status() reconciler.Status {
	status := reconciler.Status{Kind: r.status, Error: r.failure, UpdatedAt: time.Unix(0, r.at)}
	if r.status == reconciler.StatusKindPending {
		status.ID = uint64(r.at)
	}
	return status
}

// Committed says that the map has the entry as the row states it, and since
// when. It is the end of the way from another cluster: what measures latency
// watches for it.
func (r *Row) Committed() (since time.Time, ok bool) {
	return time.Unix(0, r.at), r.status == reconciler.StatusKindDone
}

// TableHeader names the columns for db/show.
func (*Row) TableHeader() []string {
	return []string{"Prefix", "Identity", "TunnelEndpoint", "EncryptKey", "Flags", "Kind", "Owner", "Status"}
}

// TableRow is the row for db/show.
func (r *Row) TableRow() []string {
	return []string{
		r.Prefix().String(),
		strconv.FormatUint(uint64(r.Identity), 10),
		r.TunnelEndpoint().String(),
		strconv.FormatUint(uint64(r.EncryptKey), 10),
		r.Flags.String(),
		r.kind.String(),
		r.owner.name,
		r.Status().String(),
	}
}

func (r *Row) claim() claim {
	return claim{owner: r.owner, source: r.source, kind: r.kind, value: r.Value}
}

// with is the row with another winning claim; its status is kept, and is the
// caller's to change if the value did.
func (r *Row) with(c claim) *Row {
	row := *r
	row.owner, row.source, row.kind, row.Value = c.owner, c.source, c.kind, c.value
	return &row
}

func cloneRow(r *Row) *Row {
	row := *r
	return &row
}

func setStatus(r *Row, status reconciler.Status) *Row {
	r.status, r.failure, r.at = status.Kind, status.Error, status.UpdatedAt.UnixNano()
	return r
}

// indexKey orders by family, address and length, and takes 6 bytes for IPv4:
// every row has one.
func indexKey(k Key) index.Key {
	ip := k.IP[:]
	if k.Family == familyIPv4 {
		ip = ip[:4]
	}
	key := make(index.Key, 0, len(ip)+2)
	key = append(key, k.Family)
	key = append(key, ip...)
	return append(key, byte(k.PrefixLen-staticPrefixBits))
}

// prefixKey is indexKey of a prefix; an invalid one gives a key no row has.
func prefixKey(prefix netip.Prefix) index.Key {
	key, ok := NewKey(prefix)
	if !ok {
		return index.Key{}
	}
	return indexKey(key)
}

var prefixIndex = statedb.Index[*Row, netip.Prefix]{
	Name: "prefix",
	FromObject: func(r *Row) index.KeySet {
		return index.NewKeySet(indexKey(r.Key))
	},
	FromKey: prefixKey,
	FromString: func(s string) (index.Key, error) {
		prefix, err := netip.ParsePrefix(s)
		return prefixKey(prefix), err
	},
	Unique: true,
}

// ByPrefix queries the row of exactly this prefix.
func ByPrefix(prefix netip.Prefix) statedb.Query[*Row] { return prefixIndex.Query(prefix) }

// NewTable makes the table and registers it with the database.
func NewTable(db *statedb.DB) (statedb.RWTable[*Row], error) {
	return statedb.NewTable(db, TableName, prefixIndex)
}
