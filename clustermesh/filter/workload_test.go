// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestParseWorkload(t *testing.T) {
	type settings map[string]string
	sync := func(value string) settings { return settings{SyncKey: value, "other": "true"} }
	scope := func(value string) settings { return settings{ScopeKey: value} }
	for _, tc := range []struct {
		name                string
		labels, annotations settings
		want                Workload
	}{
		{"nothing", nil, nil, Workload{}},
		{"others", settings{"sync": "true", "cilium.io/sync": "true"}, settings{GlobalNamespaceAnnotation: "true"}, Workload{}},
		{"label", sync("true"), nil, Workload{Sync: true, SyncFrom: AsLabel}},
		{"annotation", nil, sync("true"), Workload{Sync: true, SyncFrom: AsAnnotation}},
		{"false", nil, sync("false"), Workload{SyncFrom: AsAnnotation}},
		{"any case", sync("TrUe"), scope("Regional"),
			Workload{Sync: true, SyncFrom: AsLabel, Scope: wire.ScopeRegional, ScopeFrom: AsAnnotation}},
		{"the annotation counts", sync("true"), sync("false"), Workload{SyncFrom: AsAnnotation}},
		{"each by itself", settings{SyncKey: "true", ScopeKey: "regional"}, scope("global"),
			Workload{Sync: true, SyncFrom: AsLabel, ScopeFrom: AsAnnotation}},
		{"malformed is absent", nil, sync("yes"),
			Workload{Problem: `annotation clustermesh.cilium.io/sync="yes": must be true or false`}},
		{"and the other place counts", sync("true"), sync(""),
			Workload{Sync: true, SyncFrom: AsLabel, Problem: `annotation clustermesh.cilium.io/sync="": must be true or false`}},
		{"space", nil, sync(" true"), Workload{Problem: `annotation clustermesh.cilium.io/sync=" true": must be true or false`}},
		{"unknown scope", scope("local"), sync("true"),
			Workload{Sync: true, SyncFrom: AsAnnotation, Problem: `label clustermesh.cilium.io/sync-scope="local": must be global or regional`}},
		{"long", nil, sync(strings.Repeat("ä", 1000)),
			Workload{Problem: `annotation clustermesh.cilium.io/sync="` + strings.Repeat("ä", 32) + `": must be true or false`}},
		{"both malformed", settings{SyncKey: "1", ScopeKey: "1"}, nil,
			Workload{Problem: `label clustermesh.cilium.io/sync="1": must be true or false; label clustermesh.cilium.io/sync-scope="1": must be global or regional`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ParseWorkload(tc.labels, tc.annotations)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.want == Workload{}, got.IsZero())
		})
	}
}

func TestWorkloadPolicyFlag(t *testing.T) {
	for _, tc := range []struct {
		args         []string
		mode         SyncMode
		valid, reads bool
	}{
		{nil, SyncAll, true, false},
		{[]string{"--clustermesh-sync-mode=opt-in"}, SyncOptIn, true, true},
		{[]string{"--clustermesh-sync-mode=opt-out"}, "opt-out", false, false},
		{[]string{"--clustermesh-sync-mode="}, "", false, false},
	} {
		var got WorkloadPolicy
		h := hive.New(cell.Config(DefaultWorkloadPolicy), cell.Invoke(func(p WorkloadPolicy) { got = p }))
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		h.RegisterFlags(flags)
		require.NoError(t, flags.Parse(tc.args))
		require.NoError(t, h.Populate(hivetest.Logger(t)))
		require.Equal(t, tc.mode, got.Mode)
		require.Equal(t, tc.valid, got.Validate() == nil)
		require.Equal(t, tc.reads, got.ReadsPods(""))
		require.Equal(t, true, got.ReadsPods("eu"))
	}
}
