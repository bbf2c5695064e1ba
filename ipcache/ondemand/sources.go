// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// sourcesShare is how much longer than a look at all nodes took the next one waits:
	// a mesh whose nodes keep changing costs a tenth of a processor at the most.
	sourcesShare = 10
	// sourcesRetry is when the kernel is told again of what it didn't take.
	sourcesRetry = time.Second
)

// remoteCluster is what matters of a row of remote-clusters here.
type remoteCluster struct {
	id     uint32
	synced bool // its nodes
}

// sources follow who claims which pod CIDR.
type sources struct {
	*Engine
	clusters map[string]remoteCluster
	// sum and count are of the claims: nodes change often, and their CIDRs don't.
	sum   uint64
	count int
	seed  maphash.Seed
	known bool // the claims were looked at once
	// untold: the kernel hasn't taken what is in use.
	untold error
	// blind are clusters that nobody claims a CIDR for.
	blind []string
}

// followSources keeps the ownership of addresses up to date until ctx ends.
func (e *Engine) followSources(ctx context.Context, health cell.Health) error {
	s := &sources{Engine: e, seed: maphash.MakeSeed()}
	var nodesChanged <-chan struct{}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		began := time.Now()
		txn := e.db.ReadTxn()
		rows, clustersChanged := e.tables.RemoteClusters.AllWatch(txn)
		clusters := map[string]remoteCluster{}
		for row := range rows {
			clusters[row.Name] = remoteCluster{row.ClusterID, row.Resources[wire.Nodes].Synced}
		}
		if isClosed(nodesChanged) || !maps.Equal(clusters, s.clusters) || s.untold != nil {
			s.clusters = clusters
			nodesChanged = s.look(txn)
			s.report(txn, health)
		}
		initialized, whenInitialized := e.tables.Nodes.Initialized(txn)
		if initialized {
			whenInitialized = nil
			select {
			case <-e.settled:
			default:
				s.report(txn, health)
				close(e.settled)
			}
		}
		if s.untold != nil {
			retry.Reset(sourcesRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sourcesShare * time.Since(began)):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-nodesChanged:
		case <-clustersChanged:
		case <-whenInitialized:
		case <-retry.C:
		}
	}
}

// isClosed is true for a channel that is closed, and for none.
func isClosed(ch <-chan struct{}) bool {
	if ch == nil {
		return true
	}
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// look reads all claims, and has them decided about if they are other ones than before.
// It walks the nodes: some 10 ms for 50,000, and as much again for each claim's place in
// order if one has changed (BenchmarkDecide).
func (s *sources) look(txn statedb.ReadTxn) (changed <-chan struct{}) {
	nodes, changed := s.tables.Nodes.AllWatch(txn)
	var claims []cidrClaim
	claimed := map[string]struct{}{}
	for node := range nodes {
		claim := cidrClaim{cluster: node.Origin.Cluster, clusterID: node.Origin.ClusterID, trust: byRemote}
		if node.Origin.Source == state.SourceLocal {
			claim.trust = byLocal
		} else if of, ok := s.clusters[node.Origin.Cluster]; !ok || of.id != 0 && of.id != node.Origin.ClusterID {
			continue // it is about to go
		}
		for _, cidrs := range [][]netip.Prefix{node.PodCIDRs4, node.PodCIDRs6} {
			for _, cidr := range cidrs {
				claim.prefix = cidr.Masked()
				claims = append(claims, claim)
				claimed[claim.cluster] = struct{}{}
			}
		}
	}
	for _, flag := range s.flagCIDRs {
		claim := cidrClaim{prefix: flag.prefix, cluster: flag.cluster, trust: byFlag}
		if flag.cluster == s.local {
			claim.trust = byLocal
		} else if claim.clusterID = s.clusters[flag.cluster].id; claim.clusterID == 0 {
			continue // not configured, or not connected for the first time
		}
		claims = append(claims, claim)
		claimed[claim.cluster] = struct{}{}
	}
	s.blind = s.blind[:0]
	for _, cluster := range slices.Sorted(maps.Keys(s.clusters)) {
		if _, ok := claimed[cluster]; !ok && s.clusters[cluster].synced {
			s.blind = append(s.blind, cluster)
		}
	}

	var sum uint64
	for _, claim := range claims {
		sum += maphash.Comparable(s.seed, claim) // in any order
	}
	if !s.known || s.untold != nil || sum != s.sum || len(claims) != s.count {
		s.known, s.sum, s.count = true, sum, len(claims)
		s.use(decide(claims))
	}
	return changed
}

// use has the ownership in force, here and in the kernel.
func (s *sources) use(next *ownership) {
	names := map[string]struct{}{}
	for cluster := range s.clusters {
		names[cluster] = struct{}{}
	}
	s.withdraw(next, names)
	if s.untold = s.kernel.SetCIDRs(next.remote()); s.untold != nil {
		s.untold = fmt.Errorf("telling the kernel which pod CIDRs to look at: %w", s.untold)
	}
}

// report says in health what isn't looked at, and why.
func (s *sources) report(txn statedb.ReadTxn, health cell.Health) {
	s.mu.Lock()
	cidrs := s.cidrs
	s.blindClusters = slices.Clone(s.blind)
	s.mu.Unlock()
	var reasons []string
	if s.untold != nil {
		reasons = append(reasons, s.untold.Error())
	}
	if n := len(cidrs.refused); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d pod CIDRs aren't used, since clusters contradict each other: %s%s", n, cidrs.refused[0], andMore(n)))
	}
	initialized, _ := s.tables.Nodes.Initialized(txn)
	if n := len(s.blind); n > 0 && initialized {
		reasons = append(reasons, fmt.Sprintf("blind for %d clusters, whose nodes have no pod CIDR and which --%s doesn't name: %s%s",
			n, flagPodCIDRs, s.blind[0], andMore(n)))
	}
	if len(reasons) > 0 {
		health.Degraded("Not all misses are noticed", fmt.Errorf("%s", strings.Join(reasons, "; ")))
		return
	}
	clusters := map[uint32]struct{}{}
	remote := cidrs.remote()
	for _, id := range remote {
		clusters[id] = struct{}{}
	}
	health.OK(fmt.Sprintf("%d pod CIDRs of %d remote clusters", len(remote), len(clusters)))
}

func andMore(n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(", and %d more", n-1)
}
