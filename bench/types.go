// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package bench measures Waggle on synthetic meshes, with each part as a
// process of its own and by what the kernel accounts to that process.
//
//	types.go        the contract: what is asked, and what a report says
//	generate.go     the content of the mesh; pure
//	objects.go      the objects in it
//	sources.go      the etcds of the source clusters, filled
//	subject.go      the programs that are measured, and how they are started
//	kvstoremesh.go  the benchmark of KVStoreMesh, round by round
//	arrival.go      when the local etcd is complete
//	phases.go       what a start spends its time on; sockets.go: how that is known
//	scenarios.go    a restart, and a switch to other source etcds
//	changed.go      what differs after a switch; pure
//	replicas.go     source etcds that replace others behind their addresses
//	history.go      what was written to the local etcd
//	readyz.go       when a subject says that it is ready
//	verify.go       whether what arrived is what was sent
//	benchmark.go    what each call of a benchmark has
//	churn.go        the benchmark of steady change, round by round
//	saturation.go   the rate at which that no longer keeps up
//	load.go         events at a rate
//	ledger.go       what was sent, and what has arrived; pure
//	ingest.go       the benchmark of an agent, round by round
//	mapwatch.go     what is in an agent's map, seen from outside
//	rollout.go      the benchmark of a source that is replaced, round by round
//	fanout.go       the benchmark of many readers on one etcd, round by round
//	scale.go        the benchmark of a mesh of the largest size
//	scale_parts.go  its programs and phases
//	accounts.go     what programs use in each phase
//	scale_change.go its changes of pods and nodes
//	mapchange.go    when a change has reached an agent's map, seen from outside
//	growth.go       how cost grows with the number of keys; pure
//	export.go       the benchmark of an exporter, round by round
//	export_kubernetes.go  the API server that it reads from, and what is in it
//	incluster.go    the benchmark of a cluster's own agents, round by round
//	incluster_world.go   that cluster, and how it changes
//	incluster_book.go    what was written, and when it arrived; pure
//	incluster_agents.go  the processes of its agents
//	incluster_measure.go what one mode costs, and how long it takes
//	filters.go      the benchmark of sync filters, round by round
//	filters_mesh.go       what of a mesh is synced, by the rules; pure
//	filters_kubernetes.go the cluster with a real exporter, and how pods change
//	filters_measure.go    what one round costs
//	filters_verify.go     whether all that the rules say is there, and nothing else
//	miss.go         the benchmark of addresses that a map doesn't know, round by round
//	miss_node.go    the node that packets are sent on, and what it needs
//	miss_watch.go   when an address is in an agent's map, seen from outside
//	miss_scan.go    the same during a scan, and the time for a packet
//	etcdevents.go   what an etcd says of its watchers
//	processors.go   how busy the machine is
//	machine.go      what it was measured on
//	report.go       JSON and text; churn_report.go, ingest_report.go, rollout_report.go, fanout_report.go, export_report.go, scale_report.go, incluster_report.go, filters_report.go, miss_report.go
//	table.go        what reports share: tables, and peer against waggle
//	ratio.go        smallest, median and largest
//	follower/       the agent that measures, and many readers
//	apiserver/      what it takes to run the real kube-apiserver
//	peer-ingest/    upstream's way into an agent, as a program
//	peer-mirror/    etcd's mirror maker, as a program
//	peer-rollout/   upstream's way of reading a source, as a program
//	rollout/        what that has in common with ours
//	samples.go      what processes use over time, for plots
//	sections.go     the plots; scale_section.go, filters_section.go
//	suite.go        several benchmarks in one report
//	page/           reports as HTML
//	process/        child processes and their accounting
package bench

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Mesh is the size of a mesh, and the seed from which its content is drawn.
type Mesh struct {
	// Clusters is the number of source clusters; the consumer is one more.
	Clusters int `json:"clusters"`
	// Endpoints, Nodes, Identities and Services are those of each source cluster.
	Endpoints  int `json:"endpoints"`
	Nodes      int `json:"nodes"`
	Identities int `json:"identities"`
	Services   int `json:"services"`
	// Seed decides names, placement and the like: the same Mesh has the same
	// content to the byte.
	Seed uint64 `json:"seed"`

	// within is the number of clusters of the mesh that this is a part of, see
	// first; 0 if it isn't one.
	within int
	// changed makes it the mesh of Changed.
	changed bool
	// filters, if there are any, say what of it is synced. Its numbers stay those of
	// the whole, synced or not.
	filters *Filters
	// onDemand: endpoints and identities aren't pushed, but can be looked up.
	onDemand bool
	// spare is how many more endpoints each cluster has addresses for.
	spare int
	// exported is how many of the first clusters no source etcd has, since exporters
	// fill theirs.
	exported int
}

// DefaultMesh has 54,400 keys.
var DefaultMesh = Mesh{Clusters: 20, Endpoints: 2500, Nodes: 100, Identities: 100, Services: 20, Seed: 1}

// KeysPerCluster is the number of keys that one source cluster has.
func (m Mesh) KeysPerCluster() int { return m.Endpoints + m.Nodes + m.Identities + m.Services }

// Keys is the number of keys that all source clusters have together.
func (m Mesh) Keys() int { return m.Clusters * m.KeysPerCluster() }

// first are the first n clusters of the mesh, each with the content that it has
// there.
func (m Mesh) first(n int) Mesh {
	m.within, m.Clusters = max(m.within, m.Clusters), n
	return m
}

// MaxConnectedClusters is upstream's flag of that name for a mesh of this size:
// 255 if it can be, else 511.
func (m Mesh) MaxConnectedClusters() uint32 {
	if max(m.within, m.Clusters)+1 <= 255 {
		return 255
	}
	return 511
}

// Validate says which number can't be had in a mesh.
func (m Mesh) Validate() error {
	identities := wire.IdentityRangeFor(1, m.MaxConnectedClusters())
	switch {
	case m.Clusters < 1 || m.Clusters > 510:
		return fmt.Errorf("%d clusters: must be between 1 and 510, beside the consumer", m.Clusters)
	case m.Endpoints < 0 || m.Services < 0:
		return errors.New("endpoints and services can't be negative")
	case m.Nodes < 1:
		return errors.New("a cluster has at least one node")
	case m.Identities < 1 || uint32(m.Identities) > identities.Max-identities.Min-wire.MinIdentity:
		return fmt.Errorf("%d identities: must be between 1 and %d", m.Identities, identities.Max-identities.Min-wire.MinIdentity)
	case m.Clusters*m.Nodes*m.podBlock() > 1<<podBits:
		return fmt.Errorf("%d clusters of %d nodes with %d endpoints: more than 10.0.0.0/8 can hold", m.Clusters, m.Nodes, m.Endpoints)
	case m.Clusters*m.Nodes >= 1<<nodeBits:
		return fmt.Errorf("%d clusters of %d nodes: more than 172.16.0.0/12 can hold", m.Clusters, m.Nodes)
	case m.Services > maxServices:
		return fmt.Errorf("%d services: more than %d", m.Services, maxServices)
	}
	return nil
}

// Layout is how the keys of source clusters lie in their etcds.
type Layout string

const (
	// LayoutAuto is LayoutState for up to autoStateClusters clusters.
	LayoutAuto Layout = "auto"
	// LayoutState is one etcd for each cluster, which holds its own state.
	LayoutState Layout = "state"
	// LayoutCache is a few etcds, each of which holds many clusters as a
	// KVStoreMesh would have cached them: for more clusters than a machine can
	// run etcds.
	LayoutCache Layout = "cache"
)

// autoStateClusters is the number of source etcds that a machine of two cores
// still runs without their idle cost showing in the figures.
const autoStateClusters = 20

// Config is what to measure.
type Config struct {
	Mesh   Mesh
	Layout Layout
	// CacheEtcds is the number of source etcds in LayoutCache.
	CacheEtcds int
	// Rounds is how often each subject is measured, each time from empty.
	Rounds int
	// Timeout is how long a subject has to become ready.
	Timeout time.Duration
	// Program is waggle's own program file.
	Program string
	// Scenarios are what KVStoreMesh goes through, of those of that name; the
	// start is part of each.
	Scenarios []string
	// Peers are measured in turns with it, on the same work: names of
	// KVStoreMeshPeers, or Mirror.
	Peers []string
	// PeerProgram is the program file of upstream's clustermesh-apiserver; if
	// empty, the one beside Program is taken.
	PeerProgram string
	// MirrorProgram is that of Mirror; if empty, the one beside Program.
	MirrorProgram string
	// Dir is for data and logs of the processes, which stay there; if empty, a
	// temporary directory that is removed at the end.
	Dir string
	// Log is for what fails without ending the benchmark.
	Log *slog.Logger
	// Progress, if set, is told what is being done, in a few words, and Steps how
	// many steps are done of how many, a step being a round of a subject or the
	// like. Calls come from the goroutine of the caller of the benchmark.
	Progress func(doing string)
	Steps    func(done, of int)
}

// Figures are what one round has measured of one subject. CPU times are those
// from the start of the subject's process until it is ready, by the CPU clock of
// each process; bytes are of resident memory.
type Figures struct {
	// Keys is the number of keys in the local etcd, canaries and cluster configs
	// not counted.
	Keys int `json:"keys"`
	// ReadySeconds is the time from the start of the subject's process until all
	// clusters are complete in the local etcd.
	ReadySeconds float64 `json:"ready_seconds"`
	CPUSeconds   float64 `json:"cpu_seconds"`
	// EtcdCPUSeconds is of the local etcd, SourceCPUSeconds of all source etcds.
	EtcdCPUSeconds   float64 `json:"etcd_cpu_seconds"`
	SourceCPUSeconds float64 `json:"source_cpu_seconds"`
	// PeakRSSBytes is VmHWM: it counts the pages of the program file that were
	// touched, which are shared between processes. The two figures after it say
	// what it was made of when the subject was ready.
	PeakRSSBytes     int64 `json:"peak_rss_bytes"`
	AnonRSSBytes     int64 `json:"anon_rss_bytes"`
	FileRSSBytes     int64 `json:"file_rss_bytes"`
	EtcdPeakRSSBytes int64 `json:"etcd_peak_rss_bytes"`
	// LifetimeCPUSeconds is until the process has ended, stop included, by
	// wait4's rusage.
	LifetimeCPUSeconds float64 `json:"lifetime_cpu_seconds"`
	// Phases are when the subject was done with each phase of the start, and
	// PhasesBegan when it had begun with each. Nil where the kernel doesn't tell.
	Phases      *Phases `json:"phases,omitempty"`
	PhasesBegan *Phases `json:"phases_began,omitempty"`
	// Restart and Switch are of those scenarios; nil where they weren't asked for,
	// or the subject can't do it.
	Restart *Again `json:"restart,omitempty"`
	Switch  *Again `json:"switch,omitempty"`

	samples, etcdSamples []sample
}

// Round is one measurement of one subject.
type Round struct {
	Subject string `json:"subject"`
	Figures
}

// SourceInfo says what the subjects read from.
type SourceInfo struct {
	Layout     Layout  `json:"layout"`
	Etcds      int     `json:"etcds"`
	Keys       int     `json:"keys"`
	ValueBytes int64   `json:"value_bytes"`
	Fill       float64 `json:"fill_seconds"`
}

// Report is the outcome of a benchmark. As JSON, each subject's Figures are a
// field with the subject's name beside the report's own. With peers, "ratio" has
// the median ratios of the first one, and "ratios" those of each with their
// spread.
type Report struct {
	Head
	// Rounds are in the order in which they were made.
	Rounds []Round
}

// Head is what every report begins with.
type Head struct {
	Benchmark string
	Began     time.Time
	Mesh      Mesh
	Machine   Machine
	Build     Build
	Sources   SourceInfo
	// Allowed says what limits each subject was given.
	Allowed map[string]string
}
