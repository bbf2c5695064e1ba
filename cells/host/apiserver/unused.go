// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"log/slog"

	"github.com/cilium/cilium/pkg/controller"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/hive/cell"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// storeConfig are flags of upstream's etcd client that ours has no use for.
type storeConfig struct {
	KVStore    string `mapstructure:"kvstore"`
	QuorumErrs uint   `mapstructure:"kvstore-max-consecutive-quorum-errors"`
}

var defaultStoreConfig = storeConfig{KVStore: kvstore.EtcdBackendName, QuorumErrs: defaults.KVstoreMaxConsecutiveQuorumErrors}

// Flags registers the flags.
func (def storeConfig) Flags(flags *pflag.FlagSet) {
	flags.String(option.KVStore, def.KVStore, "Key-value store type, of which there is one: "+kvstore.EtcdBackendName)
	flags.Uint(option.KVstoreMaxConsecutiveQuorumErrorsName, def.QuorumErrs, "Has no effect: each connection is judged by its answers")
}

// unusedFlags has the program take what upstream's takes, and say at start which of
// what is set means nothing.
var unusedFlags = cell.Group(
	cell.Config(defaultStoreConfig),
	cell.Invoke(reportUnused),
)

type unusedParams struct {
	cell.In

	Log         *slog.Logger
	Lifecycle   cell.Lifecycle
	Store       storeConfig
	Controllers controller.Config
	Etcd        etcd.Config
	CRDs        synced.CRDSyncConfig `optional:"true"`
}

// unusedFlag is a flag, or one option of one, that is set and means nothing.
type unusedFlag struct{ flag, reason string }

// unused lists those that are set to something else than their default.
func (p *unusedParams) unused() (list []unusedFlag) {
	add := func(set bool, flag, reason string) {
		if set {
			list = append(list, unusedFlag{flag, reason})
		}
	}
	add(p.Store.QuorumErrs != defaultStoreConfig.QuorumErrs, option.KVstoreMaxConsecutiveQuorumErrorsName,
		"each connection is judged by its answers")
	add(len(p.Controllers.ControllerGroupMetrics) > 0, "controller-group-metrics", "there are no controllers here; jobs are counted instead")
	add(p.CRDs.CRDWaitTimeout != 0 && p.CRDs != synced.DefaultCRDSyncConfig, "crd-wait-timeout",
		"a missing CRD is waited for, and health says so")
	for option, reason := range map[string]string{
		etcd.OptLimit:        "lists are read in pages bounded by bytes",
		etcd.OptBootstrapQPS: "the first synchronisation takes few commits, for which etcd.qps is enough",
	} {
		_, set := p.Etcd.KVStoreOpt[option]
		add(set, "kvstore-opt "+option, reason)
	}
	return list
}

func reportUnused(p unusedParams) {
	p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		if p.Store.KVStore != kvstore.EtcdBackendName {
			return fmt.Errorf("--%s=%q: the only one there is is %q", option.KVStore, p.Store.KVStore, kvstore.EtcdBackendName)
		}
		for _, unused := range p.unused() {
			p.Log.Info("A flag is set that has no effect", "flag", "--"+unused.flag, "reason", unused.reason)
		}
		return nil
	}})
}
