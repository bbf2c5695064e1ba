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
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// sourcesShare is how much longer than a look at all nodes took the next one waits:
	// a mesh whose nodes keep changing costs a tenth of a processor at the most.
	sourcesShare = 10
	// maxClaims is how many pod CIDRs are taken from the nodes of one remote cluster: six
	// for each node of a cluster of 5,000, and an eighth of what the kernel has room for.
	// A single node's value has room for thousands.
	maxClaims = 1 << 15
)

// newSourcesRetry says when the kernel is told again of what it didn't take.
func newSourcesRetry() *wait.Backoff {
	return &wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 8, Cap: time.Minute}
}

// remoteCluster is what matters of a row of remote-clusters here.
type remoteCluster struct {
	id     uint32
	synced bool // its nodes
}

// Excess is how many pod CIDRs a cluster has beyond those that are taken from it.
type Excess struct {
	Cluster string `json:"cluster"`
	Count   int    `json:"count"`
}

// sources follow who claims which pod CIDR.
type sources struct {
	*engine
	clusters map[string]remoteCluster
	// sum and count are of the claims: nodes change often, and their CIDRs don't.
	sum   uint64
	count int
	seed  maphash.Seed
	known bool // the claims were looked at once
	// complete: the nodes of all clusters are there. Until then the kernel goes on
	// looking at what an earlier process told it of: what isn't looked at isn't seen to
	// be used, and what isn't used isn't asked for again.
	complete bool
	// earlier is that; nil if it isn't read yet, or not needed any longer.
	earlier map[netip.Prefix]uint32
	// untold: the kernel hasn't taken what is in use.
	untold error
	retry  *wait.Backoff
	// blind are clusters whose nodes nobody knows a CIDR of, and excess those that
	// claim too many.
	blind  []string
	excess []Excess
	// unknown are clusters that the flag names and that aren't configured.
	unknown []string
}

// followSources keeps the ownership of addresses up to date until ctx ends.
func (e *engine) followSources(ctx context.Context, health cell.Health) error {
	s := &sources{engine: e, seed: maphash.MakeSeed(), retry: newSourcesRetry()}
	var nodesChanged <-chan struct{}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for tell := false; ; {
		began := time.Now()
		txn := e.db.ReadTxn()
		rows, clustersChanged := e.tables.RemoteClusters.AllWatch(txn)
		clusters := map[string]remoteCluster{}
		for row := range rows {
			clusters[row.Name] = remoteCluster{row.ClusterID, row.Resources[wire.Nodes].Synced}
		}
		initialized, whenInitialized := e.tables.Nodes.Initialized(txn)
		if initialized {
			whenInitialized = nil
		}
		settles := initialized && !s.complete
		s.complete = initialized
		look := settles || isClosed(nodesChanged) || !maps.Equal(clusters, s.clusters)
		if look {
			s.clusters = clusters
			var decided bool
			nodesChanged, decided = s.look(txn)
			tell = tell || decided || settles
		}
		if tell {
			if s.untold = s.tell(); s.untold != nil {
				retry.Reset(s.retry.Step())
			} else {
				s.retry = newSourcesRetry()
			}
		}
		if look || tell {
			s.report(health)
		}
		if settles {
			close(e.settled)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sourcesShare * time.Since(began)):
		}
		tell = false
		select {
		case <-ctx.Done():
			return nil
		case <-nodesChanged:
		case <-clustersChanged:
		case <-whenInitialized:
		case <-e.opened:
			tell = true
		case <-retry.C:
			tell = s.untold != nil
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
func (s *sources) look(txn statedb.ReadTxn) (changed <-chan struct{}, decided bool) {
	nodes, changed := s.tables.Nodes.AllWatch(txn)
	claims, counts := []cidrClaim(nil), map[string]int{}
	flagged := map[string]bool{}
	for node := range nodes {
		cluster := node.Origin.Cluster
		claim := cidrClaim{cluster: cluster, clusterID: node.Origin.ClusterID, trust: byRemote}
		if node.Origin.Source == state.SourceLocal {
			claim.trust = byLocal
		} else if of, ok := s.clusters[cluster]; !ok || of.id != 0 && of.id != node.Origin.ClusterID {
			continue // it is about to go
		}
		count := counts[cluster] // 0 is there, too: it has nodes
		for _, cidrs := range [][]netip.Prefix{node.PodCIDRs4, node.PodCIDRs6} {
			for _, cidr := range cidrs {
				if count++; count > maxClaims && claim.trust == byRemote {
					continue
				}
				claim.prefix = cidr.Masked()
				claims = append(claims, claim)
			}
		}
		counts[cluster] = count
	}
	s.unknown = nil
	for _, flag := range s.flagCIDRs {
		if _, ok := s.clusters[flag.cluster]; !ok && flag.cluster != s.local && !slices.Contains(s.unknown, flag.cluster) {
			s.unknown = append(s.unknown, flag.cluster)
		}
		claim := cidrClaim{prefix: flag.prefix, cluster: flag.cluster, trust: byFlag}
		if flag.cluster == s.local {
			claim.trust = byLocal
		} else if claim.clusterID = s.clusters[flag.cluster].id; claim.clusterID == 0 {
			continue // not configured, or not connected for the first time
		}
		claims = append(claims, claim)
		flagged[claim.cluster] = true
	}
	s.blind, s.excess = nil, nil
	for _, cluster := range slices.Sorted(maps.Keys(s.clusters)) {
		// One without nodes has no pods that could be missed.
		count, hasNodes := counts[cluster]
		if hasNodes && count == 0 && s.clusters[cluster].synced && !flagged[cluster] {
			s.blind = append(s.blind, cluster)
		}
		if count > maxClaims {
			s.excess = append(s.excess, Excess{cluster, count - maxClaims})
		}
	}

	names := map[string]struct{}{}
	for cluster := range s.clusters {
		names[cluster] = struct{}{}
	}
	s.forgetBut(names) // a cluster may go after its nodes, and nothing else changes then

	var sum uint64
	for _, claim := range claims {
		sum += maphash.Comparable(s.seed, claim) // in any order
	}
	if s.known && sum == s.sum && len(claims) == s.count {
		return changed, false
	}
	s.known, s.sum, s.count = true, sum, len(claims)
	s.withdraw(decide(claims))
	return changed, true
}

// tell has the kernel look at what is in use, and as long as that isn't all that there
// is, at what an earlier process told it of.
func (s *sources) tell() error {
	s.mu.Lock()
	wanted := s.cidrs.remote()
	s.mu.Unlock()
	switch {
	case s.complete:
		s.earlier = nil
	case s.earlier == nil:
		var err error
		if s.earlier, err = s.kernel.CIDRs(); err != nil {
			return fmt.Errorf("asking the kernel which pod CIDRs it looks at: %w", err)
		}
	}
	for prefix, id := range s.earlier {
		if _, ok := wanted[prefix]; !ok {
			wanted[prefix] = id
		}
	}
	if err := s.kernel.SetCIDRs(wanted); err != nil {
		return fmt.Errorf("telling the kernel which pod CIDRs to look at: %w", err)
	}
	return nil
}

// report says in health what isn't looked at, and why.
func (s *sources) report(health cell.Health) {
	s.mu.Lock()
	cidrs := s.cidrs
	s.blindClusters, s.excessive = s.blind, s.excess
	s.mu.Unlock()
	var reasons []string
	if s.untold != nil {
		reasons = append(reasons, s.untold.Error())
	}
	if n := len(cidrs.refused); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d pod CIDRs aren't used, since clusters contradict each other or claim what isn't for pods: %s%s",
			n, cidrs.refused[0], andMore(n)))
	}
	if n := len(s.excess); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d clusters have more than %d pod CIDRs, of which the rest isn't used: %d of %q%s",
			n, maxClaims, s.excess[0].Count, s.excess[0].Cluster, andMore(n)))
	}
	if n := len(s.blind); n > 0 && s.complete {
		reasons = append(reasons, fmt.Sprintf("blind for %d clusters, whose nodes have no pod CIDR and which --%s doesn't name: %s%s",
			n, flagPodCIDRs, s.blind[0], andMore(n)))
	}
	if n := len(s.unknown); n > 0 && s.complete {
		reasons = append(reasons, fmt.Sprintf("--%s names %d clusters that aren't configured: %q%s",
			flagPodCIDRs, n, s.unknown[0], andMore(n)))
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
