// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import "github.com/cilium/hive/cell"

// Cell provides the Writer, and each table to read. The tables to modify are
// not in the hive at all: they are the Writer's own.
var Cell = cell.Module(
	"state",
	"The tables of what is known and their Writer",

	// The Writer, which registers the tables.
	cell.Provide(NewWriter),
	// statedb.Table[*Endpoint] and the others.
	cell.Provide((*Writer).Tables),
)
