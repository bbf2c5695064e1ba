// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import "github.com/waggle-mesh/waggle/clustermesh/wire"

// Fate is what becomes of an object in its cluster's etcd.
type Fate uint8

const (
	// Kept at home: there is no key.
	Kept Fate = iota
	// OnDemand is a key that other clusters may look up, and that none watches.
	OnDemand
	// Pushed is a key that other clusters watch.
	Pushed
)

// String is the fate as people read it.
func (f Fate) String() string {
	switch f {
	case Kept:
		return "kept"
	case OnDemand:
		return "on-demand"
	case Pushed:
		return "pushed"
	}
	return "unknown"
}

// Endpoint decides about an endpoint whose namespace is global or not, and whose
// pod says w. What a pod says never gets it out of its namespace.
func (p WorkloadPolicy) Endpoint(global bool, w Workload) Fate {
	switch {
	case !global:
		return Kept
	case p.Mode == SyncAll, w.SyncFrom != Unset && w.Sync:
		return Pushed
	}
	return OnDemand
}

// Identity decides about an identity. used says whether an endpoint that is pushed
// has it: the others are looked up, and their identity with them.
func (p WorkloadPolicy) Identity(global, used bool) Fate {
	switch {
	case !global:
		return Kept
	case p.Mode == SyncAll, used:
		return Pushed
	}
	return OnDemand
}

// Scope is how far an endpoint of a cluster in this region is synced. Without a
// region ("") nothing is regional.
func Scope(w Workload, region string) wire.Scope {
	if region == "" {
		return wire.ScopeGlobal
	}
	return w.Scope
}
