// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// writeModule writes a repository whose "Kubernetes" is one empty package, so
// that building it takes no time.
func writeModule(t *testing.T, root, version, main string) {
	t.Helper()
	for name, content := range map[string]string{
		"go.mod":                             "module m\n",
		"testdata/kube-apiserver/main.go":    main,
		"testdata/kube-apiserver/k8s/go.mod": "module k8s.io/kubernetes\n",
		"testdata/kube-apiserver/k8s/app.go": "package app\n",
		"testdata/kube-apiserver/go.mod": "module m/testdata/kube-apiserver\n" +
			"require k8s.io/kubernetes " + version + "\n" +
			"replace k8s.io/kubernetes => ./k8s\n",
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

// TestBuild builds once for all who ask, again for another version, and leaves
// what was built alone when a build fails.
func TestBuild(t *testing.T) {
	const (
		valid   = "package main\nimport _ \"k8s.io/kubernetes\"\nfunc main() {}\n"
		invalid = "package main\nfunc main() { undefined() }\n"
	)
	root := t.TempDir()
	t.Chdir(root)
	binary := filepath.Join(root, "bin", "kube-apiserver")

	writeModule(t, root, "v1.0.0", valid)
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			_, err := Build(t.Context())
			return err
		})
	}
	require.NoError(t, group.Wait())
	require.Equal(t, "v1.0.0", builtVersion(binary))

	writeModule(t, root, "v1.0.0", invalid)
	path, err := Build(t.Context())
	require.NoError(t, err, "it is built already")
	require.Equal(t, binary, path)

	writeModule(t, root, "v1.0.1", invalid)
	_, err = Build(t.Context())
	require.ErrorContains(t, err, "undefined: undefined")
	require.Equal(t, "v1.0.0", builtVersion(binary))

	writeModule(t, root, "v1.0.1", valid)
	_, err = Build(t.Context())
	require.NoError(t, err)
	require.Equal(t, "v1.0.1", builtVersion(binary))
}

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	gomod := filepath.Join(dir, "go.mod")
	require.NoError(t, os.WriteFile(gomod, []byte("module m\nrequire k8s.io/kubernetes v1.35.4\n"), 0o600))
	version, err := wantedVersion(gomod)
	require.NoError(t, err)
	require.Equal(t, "v1.35.4", version)

	require.NoError(t, os.WriteFile(gomod, []byte("module m\n"), 0o600))
	_, err = wantedVersion(gomod)
	require.ErrorContains(t, err, "doesn't require k8s.io/kubernetes")

	require.Empty(t, builtVersion(filepath.Join(dir, "absent")))
	require.Empty(t, builtVersion(gomod), "a file that isn't a binary")
	self, err := os.Executable()
	require.NoError(t, err)
	require.Empty(t, builtVersion(self), "a binary of something else")
}

func TestModuleRoot(t *testing.T) {
	root, err := moduleRoot(t.Context())
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "testdata", "kube-apiserver", "go.mod"))

	t.Chdir(t.TempDir())
	_, err = moduleRoot(t.Context())
	require.ErrorIs(t, err, errNoModule)
}
