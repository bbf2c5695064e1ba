// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// String is the source as people read it.
func (s Source) String() string {
	switch s {
	case SourceLocal:
		return "local"
	case SourceClusterMesh:
		return "clustermesh"
	case SourceOnDemand:
		return "on-demand"
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// MarshalText gives the name, for JSON and YAML.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// TableHeader names the columns for `db/show`.
func (*Endpoint) TableHeader() []string {
	return []string{"Prefix", "Identity", "HostIP", "Namespace", "Pod", "ServiceAccount",
		"Cluster", "Source", "Owner", "Scope", "Key", "Waiting"}
}

// TableRow gives the values of the columns; Waiting counts the claims behind.
func (e *Endpoint) TableRow() []string {
	s := e.shared.Value()
	return []string{e.Prefix().String(), formatUint(e.identity), formatAddr(e.HostIP()), s.namespace, e.pod,
		s.serviceAccount, s.origin.Cluster, s.origin.Source.String(), e.Owner().Object, formatScope(e.scope),
		formatUint(e.key), strconv.Itoa(len(e.Waiting()))}
}

// endpointText is an Endpoint, or a claim that waits, as JSON and YAML show it.
type endpointText struct {
	Prefix         netip.Prefix   `json:"prefix" yaml:"prefix"`
	Identity       uint32         `json:"identity" yaml:"identity"`
	HostIP         string         `json:"hostIP,omitempty" yaml:"hostIP,omitempty"`
	Cluster        string         `json:"cluster" yaml:"cluster"`
	ClusterID      uint32         `json:"clusterID" yaml:"clusterID"`
	Source         Source         `json:"source" yaml:"source"`
	Object         string         `json:"object,omitempty" yaml:"object,omitempty"`
	Namespace      string         `json:"namespace,omitempty" yaml:"namespace,omitempty"`
	Pod            string         `json:"pod,omitempty" yaml:"pod,omitempty"`
	ServiceAccount string         `json:"serviceAccount,omitempty" yaml:"serviceAccount,omitempty"`
	Key            uint8          `json:"key,omitempty" yaml:"key,omitempty"`
	Scope          string         `json:"scope" yaml:"scope"`
	Metadata       string         `json:"metadata,omitempty" yaml:"metadata,omitempty"`
	NamedPorts     []string       `json:"namedPorts,omitempty" yaml:"namedPorts,omitempty"`
	Waiting        []endpointText `json:"waiting,omitempty" yaml:"waiting,omitempty"`
}

func textOf(c Claim) endpointText {
	ep := &c.Endpoint
	text := endpointText{
		Prefix:    ep.Prefix,
		Identity:  ep.Identity,
		Cluster:   c.Origin.Cluster,
		ClusterID: c.Origin.ClusterID,
		Source:    c.Origin.Source,
		Object:    c.Owner.Object,
		Namespace: ep.Namespace, Pod: ep.Pod, ServiceAccount: ep.ServiceAccount,
		Key: ep.EncryptionKey, Scope: formatScope(ep.Scope),
		Metadata: ep.Metadata,
	}
	for _, p := range ep.NamedPorts {
		text.NamedPorts = append(text.NamedPorts, p.Name+"="+formatUint(uint32(p.Port))+"/"+p.Protocol)
	}
	if ep.HostIP.IsValid() {
		text.HostIP = ep.HostIP.String()
	}
	return text
}

func (e *Endpoint) text() endpointText {
	text := textOf(e.Claim())
	for _, c := range e.Waiting() {
		text.Waiting = append(text.Waiting, textOf(c))
	}
	return text
}

// MarshalJSON writes the claim that wins, and those that wait.
func (e *Endpoint) MarshalJSON() ([]byte, error) { return json.Marshal(e.text()) }

// MarshalYAML gives what MarshalJSON writes, for YAML.
func (e *Endpoint) MarshalYAML() (any, error) { return e.text(), nil }

// errWriterOnly is the answer to `db/insert endpoints`.
var errWriterOnly = errors.New("rows of endpoints are made by the Writer only")

// UnmarshalYAML refuses: a row made from text would belong to no source, and
// nothing would ever remove it.
func (*Endpoint) UnmarshalYAML(func(any) error) error { return errWriterOnly }

// TableHeader names the columns for `db/show`.
func (*Identity) TableHeader() []string { return []string{"ID", "Cluster", "Source", "Labels"} }

// TableRow gives the values of the columns.
func (i *Identity) TableRow() []string {
	return []string{formatUint(i.ID), i.Origin.Cluster, i.Origin.Source.String(), i.Labels}
}

// TableHeader names the columns for `db/show`.
func (*Node) TableHeader() []string {
	return []string{"Name", "Cluster", "Source", "Addresses", "PodCIDRs", "Key"}
}

// TableRow gives the values of the columns.
func (n *Node) TableRow() []string {
	addresses := make([]string, 0, len(n.Addresses))
	for _, a := range n.Addresses {
		addresses = append(addresses, a.Type+"="+a.IP.String())
	}
	cidrs := make([]string, 0, len(n.PodCIDRs4)+len(n.PodCIDRs6))
	for _, cidr := range slices.Concat(n.PodCIDRs4, n.PodCIDRs6) {
		cidrs = append(cidrs, cidr.String())
	}
	return []string{n.Name, n.Cluster, n.Origin.Source.String(), strings.Join(addresses, ","),
		strings.Join(cidrs, ","), formatUint(n.EncryptionKey)}
}

// TableHeader names the columns for `db/show`.
func (*Service) TableHeader() []string {
	return []string{"Name", "Namespace", "Cluster", "Source", "Shared", "Frontends", "Backends"}
}

// TableRow gives the values of the columns: of the addresses, not the ports.
func (s *Service) TableRow() []string {
	return []string{s.Name, s.Namespace, s.Cluster, s.Origin.Source.String(), strconv.FormatBool(s.Shared),
		formatKeys(s.Frontends), formatKeys(s.Backends)}
}

// TableHeader names the columns for `db/show`.
func (*ServiceExport) TableHeader() []string {
	return []string{"Name", "Namespace", "Cluster", "Source", "Type"}
}

// TableRow gives the values of the columns.
func (s *ServiceExport) TableRow() []string {
	return []string{s.Name, s.Namespace, s.Cluster, s.Origin.Source.String(), string(s.Type)}
}

// TableHeader names the columns for `db/show`.
func (*Namespace) TableHeader() []string { return []string{"Name", "Annotations", "Labels"} }

// TableRow gives the values of the columns.
func (n *Namespace) TableRow() []string {
	return []string{n.Name, formatPairs(n.Annotations), formatPairs(n.Labels)}
}

// TableHeader names the columns for `db/show`.
func (*Workload) TableHeader() []string {
	return []string{"Namespace", "Pod", "Sync", "Scope", "Gone", "Problem"}
}

// TableRow gives the values of the columns; what the pod doesn't say is empty, and so is
// Gone while the pod is there.
func (w *Workload) TableRow() []string {
	sync, scope, gone := "", "", ""
	if w.SyncFrom != filter.Unset {
		sync = strconv.FormatBool(w.Sync)
	}
	if w.ScopeFrom != filter.Unset {
		scope = formatScope(w.Scope)
	}
	if w.Gone {
		gone = "true"
	}
	return []string{w.Namespace, w.Pod, sync, scope, gone, w.Problem}
}

// TableHeader names the columns for `db/show`.
func (*Export) TableHeader() []string {
	return []string{"Resource", "Mode", "Region", "Pushed", "OnDemand", "NotGlobal", "Refused", "Synced"}
}

// TableRow gives the values of the columns.
func (e *Export) TableRow() []string {
	return []string{string(e.Resource), string(e.Mode), e.Region, strconv.Itoa(e.Pushed), strconv.Itoa(e.OnDemand),
		strconv.Itoa(e.NotGlobal), strconv.Itoa(e.Refused), strconv.FormatBool(e.Synced)}
}

// TableHeader names the columns for `db/show`.
func (*RemoteCluster) TableHeader() []string {
	return []string{"Name", "ID", "Connected", "Ready", "Cached", "Region", "Synced", "Refused",
		"Conflicts", "Failures", "Since", "LastError"}
}

// TableRow gives the values of the columns. Synced lists the resources that the
// cluster offers, with their entries, and how many are skipped if any are; a "+"
// follows what isn't whole yet. (All of it is ASCII: `db/cmp` counts columns in bytes.)
func (r *RemoteCluster) TableRow() []string {
	return []string{r.Name, formatUint(r.ClusterID), strconv.FormatBool(r.Connected), strconv.FormatBool(r.Ready),
		strconv.FormatBool(r.Cached), r.Region, r.formatResources(), formatUint(r.refused()),
		formatUint(r.Conflicts), formatUint(r.Failures), formatTime(r.Since), r.Trouble()}
}

// TableHeader names the columns for `db/show`.
func (*Datastore) TableHeader() []string {
	return []string{"Kind", "Cluster", "ID", "Backend", "Connected", "Ready", "Synced", "Refused",
		"Failures", "Since", "LastError"}
}

// TableRow gives the values of the columns, which are those of a remote cluster.
func (d *Datastore) TableRow() []string {
	return []string{d.Kind, d.Name, formatUint(d.ClusterID), d.Backend, strconv.FormatBool(d.Connected),
		strconv.FormatBool(d.Ready), d.formatResources(), formatUint(d.refused()),
		formatUint(d.Failures), formatTime(d.Since), d.Trouble()}
}

func (r *RemoteCluster) formatResources() string {
	var resources []string
	for _, name := range slices.Sorted(maps.Keys(r.Resources)) {
		state := r.Resources[name]
		if !state.Enabled {
			continue
		}
		text := string(name) + "=" + strconv.Itoa(state.Entries)
		if state.Skipped > 0 {
			text += "(skipped=" + strconv.Itoa(state.Skipped) + ")"
		}
		if !state.Synced {
			text += "+"
		}
		resources = append(resources, text)
	}
	return strings.Join(resources, ",")
}

func (r *RemoteCluster) refused() (total uint64) {
	for _, n := range r.Refused {
		total += n
	}
	return total
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Trouble is what is wrong, of the connection first; empty is nothing.
func (r *RemoteCluster) Trouble() string {
	switch {
	case r.LastError == "":
		return r.Problem
	case r.Problem == "":
		return r.LastError
	default:
		return r.LastError + "; " + r.Problem
	}
}

func formatUint[N uint8 | uint32 | uint64](n N) string { return strconv.FormatUint(uint64(n), 10) }

func formatAddr(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

func formatScope(scope wire.Scope) string {
	if scope == wire.ScopeRegional {
		return "regional"
	}
	return "global"
}

func formatKeys[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ",")
}

func formatPairs(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, key+"="+m[key])
	}
	return strings.Join(pairs, ",")
}
