// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
)

// Cell provides the Writer, and each table to read. The tables to modify are
// not in the hive at all: they are the Writer's own.
var Cell = cell.Module(
	"state",
	"The tables of what is known and their Writer",

	// The Writer, which registers the tables.
	cell.Provide(provideWriter),
	// statedb.Table[*Endpoint] and the others.
	cell.Provide((*Writer).Tables),
)

// TablePrefix goes before the names of all tables, if a hive has one. It is for the
// hives of other programs, which have tables of these names themselves.
type TablePrefix string

type writerParams struct {
	cell.In

	DB     *statedb.DB
	Prefix TablePrefix `optional:"true"`
}

func provideWriter(p writerParams) (*Writer, error) { return newWriter(p.DB, p.Prefix) }
