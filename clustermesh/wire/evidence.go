// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrIncomplete says that an etcd doesn't have all of a cluster's entries, or can't be
// told to: what isn't found there may exist all the same.
var ErrIncomplete = errors.New("the etcd isn't complete")

// EvidenceCount is the number of EvidenceKeys.
const EvidenceCount = 2

// EvidenceKeys are what tells an absence from an etcd that was emptied, or isn't filled
// yet: the cluster's config, and the canary of the resource. They are to be read at the
// same revision as the SourceKeys.
//
// What is on demand has no canary of its own. Its keys are queued for etcd before the
// canary of what is pushed is, by an exporter that writes everything again; so the one
// canary stands for both.
func (l Lookup) EvidenceKeys(cached bool) []string {
	return []string{ClusterConfigKey(l.Cluster), CanaryKey(l.Resource, l.Cluster, cached)}
}

// Asks gives what is read for each of several look-ups: its SourceKeys, and then its
// EvidenceKeys, which those of one cluster and resource share.
func Asks(lookups []Lookup, cached bool) [][]string {
	asks := make([][]string, len(lookups))
	var evidence []string
	for i, l := range lookups {
		if i == 0 || l.Cluster != lookups[i-1].Cluster || l.Resource != lookups[i-1].Resource {
			evidence = l.EvidenceKeys(cached)
		}
		asks[i] = append(l.SourceKeys(cached), evidence...)
	}
	return asks
}

// CheckAbsence says whether there is nothing where nothing was found: nil, or an error
// that is ErrIncomplete. It is given the values of EvidenceKeys, nil for a key that isn't
// there, and the config by which the cluster is connected, which was decoded from raw: an
// etcd that has become another cluster's says nothing about this one. A config that is
// still the same isn't decoded again, which would be most of what a look-up costs.
func (l Lookup) CheckAbsence(connected ClusterConfig, raw []byte, evidence [][]byte) error {
	if len(evidence) != EvidenceCount {
		return fmt.Errorf("%w: cluster %q: %d values of evidence", ErrIncomplete, l.Cluster, len(evidence))
	}
	config, err := connected, error(nil)
	if len(evidence[0]) == 0 || !bytes.Equal(evidence[0], raw) {
		config, err = ParseClusterConfig(evidence[0])
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: cluster %q: %w", ErrIncomplete, l.Cluster, err)
	case config.ID != connected.ID:
		return fmt.Errorf("%w: cluster %q has the ID %d by now, not %d", ErrIncomplete, l.Cluster, config.ID, connected.ID)
	case config.Capabilities.Cached != connected.Capabilities.Cached:
		return fmt.Errorf("%w: cluster %q has another layout by now", ErrIncomplete, l.Cluster)
	case config.Capabilities.SyncedCanaries && evidence[1] == nil:
		return fmt.Errorf("%w: cluster %q doesn't say that all of its %s are there", ErrIncomplete, l.Cluster, l.Resource)
	}
	return nil
}
