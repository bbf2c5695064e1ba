// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import "github.com/waggle-mesh/waggle/clustermesh/wire"

// Crosses says whether an endpoint of this scope goes from a cluster of region
// source to one of region consumer. Where one of them has none ("") all do: nothing
// is lost to a cluster that was never told of regions.
func Crosses(scope wire.Scope, source, consumer string) bool {
	return scope != wire.ScopeRegional || !Regional(source, consumer)
}

// Regional says whether two clusters are known to be in different regions, so that
// scopes make a difference between them.
func Regional(source, consumer string) bool {
	return source != "" && consumer != "" && source != consumer
}
