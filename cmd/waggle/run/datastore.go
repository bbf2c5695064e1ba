// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
)

// Datastore is where the agent of one cluster has its own cluster's state from.
type Datastore struct {
	Cluster string
	state.Datastore
	Problem string
}

// Datastores asks those agents of a run that have their own cluster's state: in the
// clusters with an in-cluster cache.
func (s *Status) Datastores() []Datastore {
	var out []Datastore
	for _, place := range s.layout.Clusters {
		if !place.has(partCache) {
			continue
		}
		row, found, err := datastoreOf(place.Shells[partAgent])
		switch {
		case err != nil:
			out = append(out, Datastore{Cluster: place.Cluster.Name, Problem: shorten(err)})
		case found:
			out = append(out, Datastore{Cluster: place.Cluster.Name, Datastore: row, Problem: row.Trouble()})
		}
	}
	return out
}

// datastoreOf asks one process; only an agent has a row.
func datastoreOf(socket string) (row state.Datastore, found bool, err error) {
	out, err := ask(socket, "db/show --format=json datastore")
	if err != nil {
		return row, false, err
	}
	err = json.NewDecoder(strings.NewReader(out)).Decode(&row)
	if errors.Is(err, io.EOF) {
		return row, false, nil
	}
	if err != nil {
		return row, false, fmt.Errorf("reading the table of the datastore: %w", err)
	}
	return row, true, nil
}

// PrintDatastores writes a table of them; nothing if there are none.
func PrintDatastores(w io.Writer, rows []Datastore, now time.Time) error {
	if len(rows) == 0 {
		return nil
	}
	table := output.NewTable(w, "CLUSTER", "DATASTORE", "BACKEND", "STATE", "SYNCED", "NODES", "IDENTITIES", "ENDPOINTS", "SERVICES", "")
	for _, row := range rows {
		cells := []any{row.Cluster, cmp.Or(row.Kind, "-"), cmp.Or(row.Backend, "-"), row.connection(now), output.YesNo(row.Ready)}
		for _, resource := range resources {
			cells = append(cells, row.Resources[resource].Entries)
		}
		table.Row(append(cells, row.Problem)...)
	}
	return table.Flush()
}

// connection says whether there is one, and for how long.
func (d *Datastore) connection(now time.Time) string {
	if d.Since.IsZero() {
		return "unknown"
	}
	since := now.Sub(d.Since).Round(time.Second)
	if d.Connected {
		return fmt.Sprintf("connected for %s", since)
	}
	return fmt.Sprintf("away for %s", since)
}
