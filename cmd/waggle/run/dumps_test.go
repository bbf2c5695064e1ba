// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
