// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/state"
)

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

func namespaceYAML(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %q}\n", name)
	}
	return b.String()
}

// directory follows a directory of manifests of Namespaces.
type directory struct {
	tables
	t *testing.T
}

func follow(t *testing.T, dir string) *directory {
	d := &directory{t: t}
	h := newHive(cell.Invoke(func(in tables) { d.tables = in }))
	start(t, h, map[string]string{"k8s-manifests": dir})
	eventually(t, d.DB, d.Namespaces, "the first reading", func(txn statedb.ReadTxn) bool {
		done, _ := d.Namespaces.Initialized(txn)
		return done
	})
	return d
}

func (d *directory) expect(want ...string) {
	d.t.Helper()
	var last []string
	defer func() {
		if d.t.Failed() {
			d.t.Logf("last seen: %v, wanted: %v", last, want)
		}
	}()
	eventually(d.t, d.DB, d.Namespaces, fmt.Sprint(want), func(txn statedb.ReadTxn) bool {
		last = names(txn, d.Namespaces, namespaceName)
		return slices.Equal(append([]string{}, want...), last)
	})
}

// TestMountedConfigMap changes the directory as the kubelet changes a mounted
// ConfigMap: files are links through ..data, which is replaced by a rename.
func TestMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	mount := func(version string, files map[string]string) {
		data := filepath.Join(dir, "..2025_"+version)
		require.NoError(t, os.Mkdir(data, 0o755))
		for name, content := range files {
			writeFile(t, filepath.Join(data, name), content)
		}
		require.NoError(t, os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		for name := range files {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
				require.ErrorIs(t, err, os.ErrExist)
			}
		}
	}
	mount("1", map[string]string{"a.yaml": namespaceYAML("a1"), "b.yaml": namespaceYAML("b")})
	d := follow(t, dir)
	d.expect("a1", "b")

	mount("2", map[string]string{"a.yaml": namespaceYAML("a2"), "b.yaml": namespaceYAML("b")})
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "..2025_1")))
	d.expect("a2", "b")

	mount("3", map[string]string{"a.yaml": namespaceYAML("a3"), "c.yaml": namespaceYAML("c")})
	require.NoError(t, os.Remove(filepath.Join(dir, "b.yaml")))
	d.expect("a3", "c")
}

func TestLinkedFileEditedInPlace(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	target := filepath.Join(elsewhere, "real.yaml")
	writeFile(t, target, namespaceYAML("one"))
	require.NoError(t, os.Symlink(target, filepath.Join(dir, "link.yaml")))
	require.NoError(t, os.Symlink(filepath.Join(elsewhere, "nothing"), filepath.Join(dir, "dangling.yaml")))
	d := follow(t, dir)
	d.expect("one")
	writeFile(t, target, namespaceYAML("one", "two"))
	d.expect("one", "two")
	writeFile(t, filepath.Join(elsewhere, "nothing"), namespaceYAML("three"))
	d.expect("one", "three", "two")
}

// TestDirectoryReplaced: while the directory is away nothing changes; what
// comes back counts.
func TestDirectoryReplaced(t *testing.T) {
	for _, kind := range []string{"directory", "link"} {
		t.Run(kind, func(t *testing.T) {
			base := t.TempDir()
			dir := filepath.Join(base, "manifests")
			v1, v2 := filepath.Join(base, "v1"), filepath.Join(base, "v2")
			for path, name := range map[string]string{v1: "one", v2: "two"} {
				require.NoError(t, os.Mkdir(path, 0o755))
				writeFile(t, filepath.Join(path, "ns.yaml"), namespaceYAML(name))
			}
			if kind == "directory" {
				require.NoError(t, os.Rename(v1, dir))
			} else {
				require.NoError(t, os.Symlink(v1, dir))
			}
			d := follow(t, dir)
			d.expect("one")

			if kind == "directory" {
				require.NoError(t, os.Rename(dir, v1))
				require.NoError(t, os.Rename(v2, dir))
				v2 = dir
			} else {
				require.NoError(t, os.Symlink(v2, filepath.Join(base, "tmp")))
				require.NoError(t, os.Rename(filepath.Join(base, "tmp"), dir))
			}
			d.expect("two")
			writeFile(t, filepath.Join(v2, "more.yaml"), namespaceYAML("three"))
			d.expect("three", "two")
		})
	}
}

// TestUnreadableFile: a file that can't be read keeps its objects, and the
// others are followed.
func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), namespaceYAML("a"))
	writeFile(t, filepath.Join(dir, "b.yaml"), namespaceYAML("b"))
	d := follow(t, dir)
	d.expect("a", "b")
	// A link to itself can't be read by anybody, root included.
	require.NoError(t, os.Symlink("a.yaml", filepath.Join(dir, "tmp")))
	require.NoError(t, os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "a.yaml")))
	writeFile(t, filepath.Join(dir, "b.yaml"), namespaceYAML("b2"))
	d.expect("a", "b2")
}

// BenchmarkEdit is from writing a file to the table, when one of 10,000 objects
// of a List changes.
func BenchmarkEdit(b *testing.B) {
	const objects = 10_000
	list := func(edit int) string {
		var text strings.Builder
		text.WriteString("apiVersion: v1\nitems:\n")
		for i := range objects {
			identity := 1000 + i
			if i == objects/2 {
				identity = edit
			}
			fmt.Fprintf(&text, "- apiVersion: cilium.io/v2\n  kind: CiliumEndpoint\n  metadata:\n    name: pod-%d\n    namespace: foo\n"+
				"  status:\n    identity:\n      id: %d\n    networking:\n      addressing:\n      - ipv4: 10.0.%d.%d\n      node: 172.18.0.2\n", i, identity, i/250, i%250)
		}
		text.WriteString("kind: List\nmetadata:\n  resourceVersion: \"\"\n")
		return text.String()
	}
	dir := b.TempDir()
	path := filepath.Join(dir, "endpoints.yaml")
	writeFile(b, path, list(0))
	edited := state.EndpointByPrefix(netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/32", objects/2/250, objects/2%250)))
	var tb tables
	h := newHive(cell.Invoke(func(in tables) { tb = in }))
	start(b, h, map[string]string{"k8s-manifests": dir})
	edit := 1_000_000
	for b.Loop() {
		b.StopTimer()
		edit++
		content := list(edit)
		b.StartTimer()
		writeFile(b, path, content)
		eventually(b, tb.DB, tb.Endpoints, "the edit", func(txn statedb.ReadTxn) bool {
			row, _, found := tb.Endpoints.Get(txn, edited)
			return found && row.Identity() == uint32(edit)
		})
	}
}

// TestNoRegularFile has what must not be opened, or can't be, by the name of a
// manifest: the files beside it are followed all the same.
func TestNoRegularFile(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), namespaceYAML("a"))
	d := follow(t, dir)
	d.expect("a")
	// Opening it would wait for a writer.
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "directory.yaml"), 0o755))
	require.NoError(t, os.Symlink("loop.yaml", filepath.Join(dir, "loop.yaml")))
	writeFile(t, filepath.Join(dir, "b.yaml"), namespaceYAML("b"))
	d.expect("a", "b")
	writeFile(t, filepath.Join(dir, "b.yaml"), namespaceYAML("c"))
	d.expect("a", "c")
}
