// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

func TestAssignIDs(t *testing.T) {
	clusters := []Cluster{
		{Name: "c", MaxConnectedClusters: 255},
		{Name: "b", ID: 1, MaxConnectedClusters: 255},
		{Name: "a", MaxConnectedClusters: 255},
	}
	require.NoError(t, assignIDs(clusters))
	require.Equal(t, []string{"b", "c", "a"}, []string{clusters[0].Name, clusters[1].Name, clusters[2].Name})

	for name, clusters := range map[string][]Cluster{
		"both have ID 7":    {{Name: "a", ID: 7}, {Name: "b", ID: 7}},
		"both named":        {{Name: "a", ID: 7}, {Name: "a", ID: 8}},
		"between 1 and 255": {{Name: "a", ID: 256, MaxConnectedClusters: 255}},
		"--cluster-name":    {{Name: "A_b", ID: 1, MaxConnectedClusters: 255}},
	} {
		require.ErrorContains(t, assignIDs(clusters), name)
	}
}

func TestReadDumpsPassesOverPipes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "amber")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600))
	namespace := "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "z.yaml"), []byte(namespace), 0o600))
	clusters, err := ReadDumps(filepath.Dir(dir))
	require.NoError(t, err)
	require.Len(t, clusters, 1)
}

// Filters are those of the cluster's cilium-config. What an exporter would end by is
// said before it starts.
func TestReadDumpsFilters(t *testing.T) {
	read := func(config string) (Cluster, error) {
		dir := filepath.Join(t.TempDir(), "amber")
		require.NoError(t, os.Mkdir(dir, 0o700))
		text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config}\ndata: {" + config + "}\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(text), 0o600))
		clusters, err := ReadDumps(filepath.Dir(dir))
		if err != nil {
			return Cluster{}, err
		}
		return clusters[0], nil
	}
	c, err := read("")
	require.NoError(t, err)
	require.Equal(t, filter.DefaultNamespacePolicy, c.Namespaces)
	require.Equal(t, filter.DefaultWorkloadPolicy, c.Workloads)
	require.Empty(t, c.Region)

	c, err = read(`cluster-region: eu, clustermesh-sync-mode: opt-in, clustermesh-default-global-namespace: "false"`)
	require.NoError(t, err)
	layout, err := prepare(t.TempDir(), []Cluster{c})
	require.NoError(t, err)
	require.Subset(t, layout.arguments(layout.Clusters[0], partExporter, agentFlags{}),
		[]string{"--cluster-region=eu", "--clustermesh-sync-mode=opt-in", "--clustermesh-default-global-namespace=false"})
	require.Contains(t, layout.arguments(layout.Clusters[0], partKVStoreMesh, agentFlags{}), "--cluster-region=eu")

	_, err = read("clustermesh-sync-mode: some")
	require.ErrorContains(t, err, `--clustermesh-sync-mode="some"`)
	require.ErrorContains(t, err, "amber")
}
