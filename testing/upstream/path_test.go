// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// maker says whose program a part of a path is.
type maker string

const (
	ours   maker = "ours"
	theirs maker = "theirs"
)

// path is a way from Kubernetes to a reader in another cluster: an exporter, the
// caches one behind the other, and an agent. Each writes what the next one
// reads.
type path struct {
	source maker
	caches []maker
	agent  maker
	// region is that of our KVStoreMeshes.
	region string
}

// paths has each of our parts on either side of each of upstream's. The first
// two have nothing but upstream's: they test the scripts.
var paths = []path{
	{theirs, nil, theirs, ""},
	{theirs, []maker{theirs}, theirs, ""},

	{ours, nil, theirs, ""},
	{ours, []maker{theirs}, theirs, ""},
	{ours, []maker{ours}, theirs, ""},
	{theirs, []maker{ours}, theirs, ""},
	{ours, []maker{ours, theirs}, theirs, ""},

	{theirs, nil, ours, ""},
	{theirs, []maker{theirs}, ours, ""},
	{theirs, []maker{ours}, ours, "us"}, // upstream knows no regions: all is taken
	{ours, []maker{theirs}, ours, ""},
	{theirs, []maker{theirs, ours}, ours, ""},
}

// filteredPaths begin with an exporter that filters, which upstream's doesn't.
var filteredPaths = []path{
	{ours, nil, theirs, ""},
	{ours, []maker{theirs}, theirs, ""},
	{ours, []maker{theirs}, ours, ""},
	{ours, []maker{theirs, ours}, theirs, "us"}, // their cache passes scopes on, and no region
	{ours, []maker{ours}, theirs, ""},
	{ours, []maker{ours}, theirs, "eu"},
	{ours, []maker{ours}, theirs, "us"},
	{ours, []maker{ours, theirs}, ours, "us"},
}

func (p path) String() string {
	names := []string{string(p.source) + "-exporter"}
	for _, cache := range p.caches {
		names = append(names, string(cache)+"-kvstoremesh")
	}
	if p.region != "" {
		names = append(names, "in-"+p.region)
	}
	return strings.Join(append(names, string(p.agent)+"-agent"), "_")
}

// TestPaths runs the scripts of testdata on each path: whoever wrote it, and
// whoever reads it, what arrives is the same.
func TestPaths(t *testing.T) {
	for _, p := range paths {
		t.Run(p.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			t.Cleanup(cancel)
			scripttest.Test(t, ctx, p.engine, nil, "testdata/*.txtar")
		})
	}
}

// TestFilteredPaths runs the scripts of testdata/filters, in which the exporter has a
// region and pods have to opt in, on paths through upstream's programs: they take what
// is meant for all, don't see what is on demand, and don't mind what they don't know.
func TestFilteredPaths(t *testing.T) {
	for _, p := range filteredPaths {
		t.Run(p.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			t.Cleanup(cancel)
			scripttest.Test(t, ctx, p.engine, nil, "testdata/filters/*.txtar")
		})
	}
}

// engine starts a path without anything to carry, and gives the commands of a
// script. args are flags of the exporter.
func (p path) engine(t testing.TB, args []string) *script.Engine {
	objects := mesh.NewObjects(t)
	source := mesh.NewCluster(t, north, northID)
	exporter := newOurExporter
	if p.source == theirs {
		exporter = newTheirExporter
	}
	from := exporter(t, source, objects, exporterFlags(args))
	from.start()

	at, etcds := source.Etcd, []*mesh.Etcd{source.Etcd}
	var caches []*mesh.Hive
	for _, by := range p.caches {
		cache, to := startCache(t, by, at, p.region)
		caches, etcds, at = append(caches, cache), append(etcds, to), to
	}
	awaitConfig(t, at)
	remotes := mesh.NewDirectory(t).Add(north, at)
	end := newReader(t, p.agent, remotes)
	end.restart()

	cmds := script.DefaultCmds()
	maps.Insert(cmds, maps.All(fakeclient.FakeClientCommands(objects)))
	maps.Insert(cmds, maps.All(etcd.ScriptCommands(source.Etcd.Client())))
	cmds["exporter/start"] = do("Start the exporter and wait until it has exported all there is", from.start)
	cmds["exporter/stop"] = do("Stop the exporter", from.Stop)
	cmds["etcd/lose"] = do("Restart the etcd of the exporter without its data", func() { lose(source.Etcd) })
	cmds["etcd/lose-all"] = do("Restart each etcd without its data, that of the exporter first", func() { lose(etcds...) })
	cmds["cache/restart"] = do("Restart each KVStoreMesh", func() {
		for _, cache := range caches {
			cache.Restart()
		}
	})
	cmds["reader/restart"] = do("Restart the reader, with nothing known and nothing gone", end.restart)
	cmds["remote/remove"] = do("Take the cluster out of the reader's mesh", func() { remotes.Remove(north) })
	cmds["reader/ready"] = readyCommand(end)
	cmds["reader/content"] = contentCommand(end)
	cmds["reader/gone"] = goneCommand(end)
	conds := script.DefaultConds()
	conds["our-exporter"] = script.BoolCondition("the exporter is ours", p.source == ours)
	conds["another-region"] = script.BoolCondition("a KVStoreMesh of ours is in the region us, and knows that of the source",
		p.region == "us" && slices.Index(p.caches, ours) == 0)
	conds["our-writers"] = script.BoolCondition("whatever writes into an etcd is ours", p.source == ours && !slices.Contains(p.caches, theirs))
	return &script.Engine{Cmds: cmds, Conds: conds}
}

// exporterFlags are the flags of a script.
func exporterFlags(args []string) mesh.Flags {
	flags := mesh.Flags{"clustermesh-enable-mcs-api": "true"}
	for _, arg := range args {
		name, value, found := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !found {
			value = "true"
		}
		flags[name] = value
	}
	return flags
}

// startCache starts a KVStoreMesh of the cluster west that reads the cluster
// north from an etcd, and gives the etcd into which it writes. Ours is in a region.
func startCache(t testing.TB, by maker, from *mesh.Etcd, region string) (*mesh.Hive, *mesh.Etcd) {
	awaitConfig(t, from)
	cluster := mesh.NewCluster(t, west, westID)
	remotes := mesh.NewDirectory(t).Add(north, from)
	cache := newTheirKVStoreMesh(t, cluster, remotes)
	if by == ours {
		cache = cluster.NewKVStoreMesh(t, remotes, mesh.Flags{"cluster-region": region}).Hive
	}
	cache.Start()
	return cache, cluster.Etcd
}

// newReader makes an agent of the cluster west.
func newReader(t testing.TB, by maker, remotes *mesh.Directory) reader {
	cluster := &mesh.Cluster{Name: west, ID: westID}
	if by == theirs {
		return newTheirReader(t, cluster, remotes)
	}
	return &ourReader{t: t, agent: cluster.NewAgent(t, remotes)}
}

// awaitConfig waits until an etcd has the cluster config of the cluster north.
// Upstream's readers wait for a second and more where there is none yet.
func awaitConfig(t testing.TB, at *mesh.Etcd) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		configs, err := at.List(t.Context(), wire.ClusterConfigKey(north))
		require.NoError(c, err)
		require.NotEmpty(c, configs)
	}, patience, 5*time.Millisecond)
}

// lose has etcds lose their data.
func lose(etcds ...*mesh.Etcd) {
	for _, etcd := range etcds {
		etcd.Stop()
		etcd.Lose()
		etcd.Start()
	}
}
