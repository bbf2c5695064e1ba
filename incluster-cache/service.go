// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/statedb"
	"github.com/google/renameio/v2"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// defaultPort is etcd's, for a Service that is named without a port.
const defaultPort = 2379

// service is a cache that is reached by the name of its Service. The way there
// doesn't lead through the datapath, which may have to be told of the Service by
// the very cache: replicas are dialled by their own addresses.
type service struct {
	// endpoint is the URL, with its port; TLS expects the name in it.
	endpoint string
	name     reading.ServiceName
	port     uint16
	// backends are those that are known, as the API server, the last process or the
	// cache itself had them.
	backends reading.ServiceBackends
}

// parseService takes an endpoint for the URL of a Service. It is false for any
// other, as unix:///path or http://127.0.0.1:2379.
func parseService(endpoint string) (*service, bool) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, false // host:port, for one
	}
	name, ok := reading.ParseServiceHost(u.Hostname())
	if !ok {
		return nil, false
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), strconv.Itoa(defaultPort)), 10, 16)
	if err != nil || port == 0 {
		return nil, false
	}
	u.Host = net.JoinHostPort(u.Hostname(), strconv.FormatUint(port, 10))
	return &service{endpoint: u.String(), name: name, port: uint16(port)}, true
}

func (s *service) replicas() []replica {
	out := make([]replica, 0, len(s.backends.Addresses))
	for _, address := range s.backends.Addresses {
		out = append(out, replica{endpoint: s.endpoint, address: address})
	}
	return out
}

// ask asks the API server for the backends. One that knows of none at the moment
// has nothing to say: those that were there may still be.
func (s *service) ask(ctx context.Context, reader reading.ServiceReader) (changed bool, err error) {
	backends, err := reader.Backends(ctx, s.name, s.port)
	if err != nil {
		return false, err
	}
	if len(backends.Addresses) == 0 {
		return false, fmt.Errorf("service %s has no backend that is ready", s.name)
	}
	return s.set(backends), nil
}

// follow takes over what the table of services says of the cache's own Service,
// which the cache tells its readers with all others: so a node learns of a replica
// that came back without asking the API server.
func (s *service) follow(txn statedb.ReadTxn, services statedb.Table[*state.Service], cluster string) (changed bool) {
	row, _, found := services.Get(txn, state.ServiceByName(cluster, s.name.Namespace, s.name.Name))
	if !found {
		return false
	}
	backends := reading.ServiceBackends{PortName: s.backends.PortName}
	for _, address := range slices.Sorted(maps.Keys(row.Backends)) {
		if port := row.Backends[address][backends.PortName]; port != nil {
			backends.Addresses = append(backends.Addresses, net.JoinHostPort(address, strconv.Itoa(int(port.Port))))
		}
	}
	if len(backends.Addresses) == 0 {
		return false
	}
	return s.set(backends)
}

func (s *service) set(backends reading.ServiceBackends) (changed bool) {
	changed = s.backends.PortName != backends.PortName || !slices.Equal(s.backends.Addresses, backends.Addresses)
	s.backends = backends
	return changed
}

// noReader is for a program without a client of Kubernetes.
type noReader struct{}

var errNoReader = errors.New("this program was built without Kubernetes: an in-cluster cache can't be named by its Service")

func (noReader) Backends(context.Context, reading.ServiceName, uint16) (reading.ServiceBackends, error) {
	return reading.ServiceBackends{}, errNoReader
}

const (
	// backendsFile is below --state-dir.
	backendsFile = "incluster-cache-backends.json"
	// backendsVersion is that of the file's format.
	backendsVersion = 1
)

// savedBackends is the content of backendsFile: the backends of each endpoint, for
// a start while the API server is away.
type savedBackends struct {
	Version   int                                `json:"version"`
	Cluster   string                             `json:"cluster"`
	ClusterID uint32                             `json:"clusterID"`
	Services  map[string]reading.ServiceBackends `json:"services"`
}

// saveBackends replaces the file as a whole.
func saveBackends(dir string, cluster wire.ClusterInfo, services []*service) error {
	saved := savedBackends{Version: backendsVersion, Cluster: cluster.Name, ClusterID: cluster.ID,
		Services: map[string]reading.ServiceBackends{}}
	for _, s := range services {
		saved.Services[s.endpoint] = s.backends
	}
	content, err := json.Marshal(saved)
	if err != nil {
		return fmt.Errorf("encoding backends: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("saving backends: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, backendsFile), content, 0o600); err != nil {
		return fmt.Errorf("saving backends: %w", err)
	}
	return nil
}

// errDiscarded says that the file is there, and is of no use.
var errDiscarded = errors.New("discarding the saved backends of the cache")

// loadBackends gives services that have none the backends that were saved. A file
// that is torn, or another cluster's, is errDiscarded and changes nothing; that there
// is none is no error.
func loadBackends(dir string, cluster wire.ClusterInfo, services []*service) error {
	path := filepath.Join(dir, backendsFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var saved savedBackends
	if err == nil {
		err = json.Unmarshal(content, &saved)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %q: %w", errDiscarded, path, err)
	case saved.Version != backendsVersion:
		return fmt.Errorf("%w: %q has version %d, not %d", errDiscarded, path, saved.Version, backendsVersion)
	case saved.Cluster != cluster.Name || saved.ClusterID != cluster.ID:
		return fmt.Errorf("%w: %q is of cluster %q, ID %d", errDiscarded, path, saved.Cluster, saved.ClusterID)
	}
	for _, s := range services {
		if backends, ok := saved.Services[s.endpoint]; ok && len(s.backends.Addresses) == 0 {
			s.backends = backends
		}
	}
	return nil
}
