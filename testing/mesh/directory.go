// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Directory is a directory of etcd configurations, one for each remote cluster,
// as --clustermesh-config names it.
type Directory struct {
	Path string
	t    testing.TB
}

// NewDirectory makes an empty directory.
func NewDirectory(t testing.TB) *Directory {
	t.Helper()
	return &Directory{Path: t.TempDir(), t: t}
}

// Add says that a cluster is to be read from this etcd, its own or a cache. It
// gives the directory, for one call after the other.
func (d *Directory) Add(cluster string, from *Etcd) *Directory {
	d.t.Helper()
	content := fmt.Appendf(nil, "endpoints:\n- %s\n", from.URL())
	require.NoError(d.t, os.WriteFile(filepath.Join(d.Path, cluster), content, 0o600))
	return d
}

// writeEtcdConfig writes an etcd configuration with several addresses, and gives its
// path.
func writeEtcdConfig(t testing.TB, addresses []string) string {
	t.Helper()
	content := "endpoints:\n"
	for _, address := range addresses {
		content += "- " + address + "\n"
	}
	path := filepath.Join(t.TempDir(), "etcd.config")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// Remove takes a cluster out of the mesh.
func (d *Directory) Remove(cluster string) {
	d.t.Helper()
	require.NoError(d.t, os.Remove(filepath.Join(d.Path, cluster)))
}
