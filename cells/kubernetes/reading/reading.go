// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package reading is what other rooms say to the one that reads Kubernetes, and ask of it,
// without a client of Kubernetes: a program may be built that has none.
package reading

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Options are what a hive says to kubernetes.Cell, beside its flags. A hive that
// provides none has to have a Kubernetes to read from.
type Options struct {
	// Off: nothing is ever read, whatever the flags say, and kubernetes.ClientCell's client
	// is off as well, so that a start doesn't wait for an API server.
	Off bool
	// Optional: without a Kubernetes to read from nothing is read, instead of the
	// start failing.
	Optional bool
	// Resources are the tables to fill (state.Namespaces and state.Workloads included,
	// the latter only with kubernetes.PodMetadata), nil for all:
	// of what fills no other table nothing is read. Service exports need services.
	Resources []wire.Resource
	// Spacing is the least time between the starts of two transactions on the tables;
	// 0 is the default. What comes after a pause of that length doesn't wait.
	Spacing time.Duration
}

// Reads says whether a table is to be filled.
func (o Options) Reads(resource wire.Resource) bool {
	return o.Resources == nil || slices.Contains(o.Resources, resource)
}

// Initializer is the name under which tables wait for what is read.
const Initializer = "kubernetes"

// From says where is read from, for people: the API server, a directory, or "" for
// nowhere.
type From string

// Manifests is the directory that is read instead of the API server, if any.
type Manifests string

// ServiceName names a Kubernetes Service.
type ServiceName struct{ Namespace, Name string }

// String is namespace/name.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// ParseServiceHost takes the host of a URL for the DNS name of a Service,
// NAME.NAMESPACE.svc with or without the cluster's domain behind it. It is false
// for any other host.
func ParseServiceHost(host string) (ServiceName, bool) {
	labels := strings.SplitN(host, ".", 4)
	if len(labels) < 3 || labels[0] == "" || labels[1] == "" || labels[2] != "svc" {
		return ServiceName{}, false
	}
	return ServiceName{Namespace: labels[1], Name: labels[0]}, true
}

// ServiceBackends is what stands behind one port of a Service.
type ServiceBackends struct {
	// PortName is the port's name in the Service and its EndpointSlices.
	PortName string
	// Addresses are host:port of those that are ready, sorted.
	Addresses []string
}

// ServiceReader finds the backends of a Service without the datapath's help: it
// asks the API server when it is asked itself, and never watches. It works where the
// hive's clientset is off, and doesn't keep a start from succeeding while the API
// server is away. It is safe for concurrent use.
type ServiceReader interface {
	// Backends asks for the ready backends of a Service's port, with two requests that
	// an API server answers from its memory. None is no error.
	Backends(ctx context.Context, service ServiceName, port uint16) (ServiceBackends, error)
}
