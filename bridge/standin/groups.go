// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"log/slog"
	"slices"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/cilium/pkg/k8s/watchers"
)

// withoutGroups are the resource groups that upstream's agent watches, without those
// whose objects are in the tables. Identities are none of a group.
func withoutGroups(all watchers.ResourceGroupFunc) watchers.ResourceGroupFunc {
	return func(log *slog.Logger, cfg watchers.WatcherConfiguration) (groups, waitOnly []string) {
		served, _ := watchers.GetGroupsForCiliumResources(log, []string{
			synced.CRDResourceName(ciliumv2.CEPName),
			synced.CRDResourceName(ciliumv2alpha1.CESName),
			synced.CRDResourceName(ciliumv2.CNName),
		})
		groups, waitOnly = all(log, cfg)
		is := func(group string) bool { return slices.Contains(served, group) }
		return slices.DeleteFunc(groups, is), slices.DeleteFunc(waitOnly, is)
	}
}
