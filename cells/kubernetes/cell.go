// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package kubernetes reflects what Waggle needs of Kubernetes into the tables
// of cells/state. The objects come from the API server, through upstream's
// clientset, or from a directory of manifests; from cache.ReflectorStore on
// both take the same path.
//
//	API server ─ client-go reflector ─┐
//	                                  ├─▶ reflector ─▶ applier ─▶ state.Txn
//	manifests ── fsnotify, diff ──────┘   (one a kind)  (one)
//
//	cell.go          wiring and flags
//	kinds.go         the kinds of objects
//	apiserver.go     source: the API server
//	manifests.go     source: a directory; manifest_parse.go and manifest_set.go are its pure parts
//	reflector.go     objects → pending changes; coalesces by object
//	applier.go       pending changes → transactions; marks tables initialized
//	connections.go   connections to the API server that are left unread between transactions
//	nodes.go, identities.go, endpoints.go, endpointslices.go, services.go,
//	serviceexports.go, namespaces.go, pods.go      what an object says, as pure functions
//	servicereader.go    the backends of one Service, when asked
//	problems.go      what is wrong with objects: logged, counted, never fatal
package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/k8s"
	"github.com/cilium/cilium/pkg/k8s/client"
	k8sutils "github.com/cilium/cilium/pkg/k8s/utils"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell reflects Kubernetes into the state tables. The hive has to provide a
// client.Clientset (ClientCell, or upstream's fake one), the cluster's
// wire.ClusterInfo and upstream's mcsapitypes.MCSAPIConfig, which other rooms
// read as well.
var Cell = cell.Module(
	"kubernetes",
	"Kubernetes to state tables",

	// --enable-cilium-endpoint-slice and --k8s-manifests.
	cell.Config(DefaultConfig),
	// --k8s-service-proxy-name.
	cell.Config(k8s.DefaultConfig),

	parts,
)

// Parts is Cell without the flags: for a hive that has upstream's ones of the same
// names, and so provides Config and k8s.Config.
var Parts = cell.Module(
	"kubernetes",
	"Kubernetes to state tables",

	parts,
)

var parts = cell.Group(
	metrics.Metric(NewMetrics),
	// For those who need to find a Service before there is a datapath.
	cell.Provide(newServiceReader),
	// Where the tables are filled from, for people.
	cell.Provide(readsFrom, func(cfg Config) reading.Manifests { return reading.Manifests(cfg.Manifests) }),
	cell.Invoke(register),
)

// ClientCell is upstream's clientset with upstream's flags. While manifests are
// read the clientset is off, even inside a pod, where it would find the API
// server by itself.
var ClientCell = cell.Group(
	client.Cell,
	cell.DecorateAll(func(upstream client.Config, ours Config, hive optional) client.Config {
		if hive.Options.Off || ours.Manifests != "" && !explicit(upstream) {
			upstream.EnableK8s = false
		}
		return upstream
	}),
)

// PodMetadata says that what pods say of themselves is read, into the table
// "workloads". Where the hive provides none, or false, pods aren't read: a watch of
// them is the dearest that a cluster has (see listWatchOfPods).
type PodMetadata bool

// optional is how Options are asked for.
type optional struct {
	cell.In

	Options reading.Options `optional:"true"`
}

// Config of the room.
type Config struct {
	// EnableCiliumEndpointSlice reads CiliumEndpointSlices instead of
	// CiliumEndpoints; upstream's flag.
	EnableCiliumEndpointSlice bool
	// Manifests is a directory that is read instead of the API server.
	Manifests string `mapstructure:"k8s-manifests"`
}

// DefaultConfig reads CiliumEndpoints from the API server.
var DefaultConfig = Config{}

// Flags registers the flags of Config.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.Bool("enable-cilium-endpoint-slice", c.EnableCiliumEndpointSlice,
		"Read CiliumEndpointSlices instead of CiliumEndpoints")
	flags.String("k8s-manifests", c.Manifests,
		"Directory of manifests, as 'kubectl get -o yaml' prints them, to read instead of the Kubernetes API server; it is watched for changes")
}

// ErrNoSource is returned at start when there is nothing to read from.
var ErrNoSource = errors.New("no Kubernetes to read from: give --k8s-kubeconfig-path or --k8s-manifests, or run in a pod")

// ErrTwoSources is returned when both an API server and manifests are asked
// for: there is one source of truth.
var ErrTwoSources = errors.New("--k8s-manifests excludes --k8s-kubeconfig-path and --k8s-api-server-urls")

type params struct {
	cell.In

	Log       *slog.Logger
	Jobs      job.Group
	Lifecycle cell.Lifecycle

	Config    Config
	Options   reading.Options `optional:"true"`
	Pods      PodMetadata     `optional:"true"`
	K8s       k8s.Config
	MCSAPI    mcsapitypes.MCSAPIConfig
	Cluster   wire.ClusterInfo
	Clientset client.Clientset
	Writer    *state.Writer
	Metrics   *Metrics
	// Connections are PatientCell's.
	Connections *connections `optional:"true"`
}

// explicit says whether an API server was asked for, as opposed to found.
func explicit(cfg client.Config) bool {
	return cfg.K8sKubeConfigPath != "" || cfg.K8sAPIServer != "" || len(cfg.K8sAPIServerURLs) > 0
}

func readsFrom(cfg Config, clientset client.Clientset) reading.From {
	switch {
	case cfg.Manifests != "":
		return reading.From("manifests in " + cfg.Manifests)
	case clientset.IsEnabled():
		return "the API server"
	}
	return ""
}

func register(p params) error {
	if p.Options.Off {
		return nil
	}
	if p.Config.Manifests != "" && explicit(p.Clientset.Config()) {
		return ErrTwoSources
	}
	if readsFrom(p.Config, p.Clientset) == "" {
		if p.Options.Optional {
			return nil
		}
		// Reported at start, so that commands which only inspect the hive work.
		p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) error { return ErrNoSource }})
		return nil
	}

	kinds, applier, err := assemble(p)
	if err != nil {
		return err
	}
	p.Jobs.Add(job.OneShot("apply", applier.run))
	if p.Config.Manifests != "" {
		source := newManifests(p.Log, p.Config.Manifests, kinds, newProblems(p.Log, "Manifest", p.Metrics, problemManifest))
		p.Lifecycle.Append(cell.Hook{OnStart: source.check})
		p.Jobs.Add(job.OneShot("read-manifests", source.run))
		return nil
	}
	for _, kind := range kinds {
		upstream, err := kind.listWatch(p.Clientset, kind.selector)
		if err != nil {
			return fmt.Errorf("reading %s from Kubernetes: %w", kind.Kind, err)
		}
		source := &apiServer{log: p.Log, kind: kind, upstream: upstream}
		p.Jobs.Add(job.OneShot("reflect-"+kind.Kind, source.run))
	}
	return nil
}

// assemble makes a reflector of each kind that the configuration reads, and
// the applier behind them.
func assemble(p params) ([]*kind, *applier, error) {
	serviceSelector, sliceSelector, err := serviceSelectors(p.K8s.K8sServiceProxyName)
	if err != nil {
		return nil, nil, fmt.Errorf("selecting services: %w", err)
	}
	origin := p.Writer.Origin(p.Cluster.Name, p.Cluster.ID, state.SourceLocal)
	joined := newServices(origin)
	applier := newApplier(p.Writer, p.Metrics)
	applier.spacing, applier.connections = cmp.Or(p.Options.Spacing, batchSpacing), p.Connections

	var kinds []*kind
	add := func(k kind, selector labels.Selector, c interface {
		collector
		cache.ReflectorStore
	}) collector {
		kinds = append(kinds, k.reading(selector, c))
		applier.add(c)
		return c
	}
	report := func(k kind) *problems {
		return newProblems(p.Log, k.Kind, p.Metrics, append([]problem{problemType}, k.problems...)...)
	}
	all := labels.Everything()

	milestone := func(resource wire.Resource, kinds ...collector) {
		applier.milestones = append(applier.milestones,
			milestone{kinds: kinds, done: p.Writer.RegisterInitializer(reading.Initializer, resource)})
	}

	// The order is the order of application within a transaction: an endpoint
	// is of no use before its identity, and is decided by what its pod says.
	reads := p.Options.Reads
	if reads(state.Namespaces) {
		milestone(state.Namespaces, add(namespaceKind, all, newReflector(namespaceKind.Kind, report(namespaceKind), p.Metrics,
			convertNamespace, applyNamespace)))
	}
	if bool(p.Pods) && reads(state.Workloads) {
		milestone(state.Workloads, add(podKind, all, newWorkloads(p.Writer, report(podKind), p.Metrics)))
	}
	if reads(wire.Identities) {
		milestone(wire.Identities, add(ciliumIdentityKind, all, newReflector(ciliumIdentityKind.Kind, report(ciliumIdentityKind), p.Metrics,
			convertIdentity, applyIdentity(origin))))
	}
	if reads(wire.Nodes) {
		milestone(wire.Nodes, add(ciliumNodeKind, all, newReflector(ciliumNodeKind.Kind, report(ciliumNodeKind), p.Metrics,
			convertNode(p.Cluster), applyNode(origin))))
	}
	switch {
	case !reads(wire.Endpoints):
	case p.Config.EnableCiliumEndpointSlice:
		milestone(wire.Endpoints, add(ciliumEndpointSliceKind, all, newReflector(ciliumEndpointSliceKind.Kind, report(ciliumEndpointSliceKind), p.Metrics,
			convertEndpointSlice, applyClaims(origin, "slice/"))))
	default:
		milestone(wire.Endpoints, add(ciliumEndpointKind, all, newReflector(ciliumEndpointKind.Kind, report(ciliumEndpointKind), p.Metrics,
			convertEndpoint, applyClaims(origin, "endpoint/"))))
	}
	if !reads(wire.Services) {
		return kinds, applier, nil
	}
	svcs := add(serviceKind, serviceSelector, newReflector(serviceKind.Kind, report(serviceKind), p.Metrics,
		convertService, joined.applyService))
	backends := add(endpointSliceKind, sliceSelector, newReflector(endpointSliceKind.Kind, report(endpointSliceKind), p.Metrics,
		convertBackends, joined.applyBackends))
	exporting := []collector{svcs, backends}
	if p.MCSAPI.EnableMCSAPI && reads(wire.ServiceExports) {
		exporting = append(exporting, add(serviceExportKind, all, newReflector(serviceExportKind.Kind, report(serviceExportKind), p.Metrics,
			convertServiceExport, joined.applyExport)))
	}
	joined.held = func() bool { return !allComplete(exporting...) }
	applier.joins = append(applier.joins, joined.join)
	milestone(wire.Services, exporting...)
	milestone(wire.ServiceExports, exporting...)
	return kinds, applier, nil
}

// serviceSelectors are upstream's: services of another proxy don't count, nor
// do slices that stand for remote clusters. Headless services do.
func serviceSelectors(proxyName string) (services, slices labels.Selector, err error) {
	forServices, err := k8sutils.GetServiceAndEndpointListOptionsModifier(proxyName, true)
	if err != nil {
		return nil, nil, err
	}
	forSlices, err := k8sutils.GetEndpointSliceListOptionsModifier(true)
	if err != nil {
		return nil, nil, err
	}
	if services, err = selectorOf(forServices); err != nil {
		return nil, nil, err
	}
	slices, err = selectorOf(forSlices)
	return services, slices, err
}

func selectorOf(modify func(*metav1.ListOptions)) (labels.Selector, error) {
	var opts metav1.ListOptions
	modify(&opts)
	return labels.Parse(opts.LabelSelector)
}
