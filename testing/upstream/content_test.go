// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	nodetypes "github.com/cilium/cilium/pkg/node/types"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// content is what a reader has, by kind and key ("node north/alpha"), in JSON.
type content map[string]string

func (c content) add(kind, key string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		raw = []byte(err.Error())
	}
	c[kind+" "+key] = string(raw)
}

// lines is a line for each entry.
func (c content) lines() []string {
	lines := make([]string, 0, len(c))
	for key, value := range c {
		lines = append(lines, key+" "+value)
	}
	return lines
}

// addNode adds a node but for its source, which says how the reader came to know
// it.
func (c content) addNode(node nodetypes.Node) {
	node.Source = ""
	c.add("node", node.Cluster+"/"+node.Name, node)
}

// endpoint is what upstream's agent is told about an address.
type endpoint struct {
	Host           netip.Addr
	Key            uint8
	Identity       uint32
	Namespace, Pod string
}

// reader is the end of a path.
type reader interface {
	// restart starts it, after stopping it if it runs.
	restart()
	// content is what it has of the cluster north.
	content() content
	// gone are the keys of what it was told is gone, since it was started.
	gone() []string
	// problem is why it doesn't count as ready, nil if it does.
	problem() error
}

// ourReader is our agent.
type ourReader struct {
	t        testing.TB
	agent    *mesh.Agent
	follower *mesh.Follower
}

func (r *ourReader) restart() {
	r.agent.Restart()
	r.follower = r.agent.Follow(r.t)
}

func (r *ourReader) content() content {
	txn := r.agent.DB.ReadTxn()
	c := content{}
	for row := range r.agent.Nodes.All(txn) {
		c.addNode(*wire.NodeToUpstream(&row.Node))
	}
	for row := range r.agent.Endpoints.All(txn) {
		c.add("endpoint", row.Prefix().Addr().String(), endpoint{
			Host: row.HostIP(), Key: row.EncryptionKey(), Identity: row.Identity(),
			Namespace: row.Namespace(), Pod: row.Pod()})
	}
	for row := range r.agent.Identities.All(txn) {
		c.add("identity", fmt.Sprint(row.ID), row.Labels)
	}
	for row := range r.agent.Services.All(txn) {
		c.add("service", row.Namespace+"/"+row.Name, row.Service)
	}
	for row := range r.agent.ServiceExports.All(txn) {
		c.add("export", row.Namespace+"/"+row.Name, row.ServiceExport)
	}
	return c
}

// kinds are the names of our tables by what upstream's reader calls them. The
// ipcache's table is derived from the others.
var kinds = map[string]string{
	state.EndpointTable:      "endpoint",
	state.IdentityTable:      "identity",
	state.NodeTable:          "node",
	state.ServiceTable:       "service",
	state.ServiceExportTable: "export",
}

func (r *ourReader) gone() []string {
	var keys []string
	for _, row := range r.follower.Gone() {
		table, key, _ := strings.Cut(row, " ")
		kind, ok := kinds[table]
		if !ok {
			continue
		}
		switch kind {
		case "endpoint":
			key = netip.MustParsePrefix(key).Addr().String()
		case "service", "export":
			key = strings.TrimPrefix(key, north+"/")
		}
		keys = append(keys, kind+" "+key)
	}
	slices.Sort(keys)
	return keys
}

func (r *ourReader) problem() error {
	row, _, found := r.agent.RemoteClusters.Get(r.agent.DB.ReadTxn(), state.RemoteClusterByName(north))
	switch {
	case !found:
		return fmt.Errorf("cluster %q isn't known", north)
	case !row.Ready || len(row.Refused) > 0 || row.Conflicts > 0 || row.HeldBack > 0:
		return fmt.Errorf("cluster %q: %+v", north, *row)
	}
	return nil
}
