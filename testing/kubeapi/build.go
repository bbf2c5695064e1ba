// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"golang.org/x/mod/modfile"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// kubernetesModule is the module whose version decides whether the binary that
// is there is the one that is wanted.
const kubernetesModule = "k8s.io/kubernetes"

// errNoModule says that the working directory is in no Go module.
var errNoModule = errors.New("not inside a Go module")

// Require is Build for a test, which is left out where that fails.
func Require(t testing.TB) (path string) {
	t.Helper()
	path, err := Build(t.Context())
	if err != nil {
		skip.Lacking(t, fmt.Errorf("there is no kube-apiserver: building it failed: %w", err))
	}
	return path
}

// Build returns the path of the kube-apiserver binary, bin/kube-apiserver below
// the module's root, and builds it first if it is missing or of another version
// than testdata/kube-apiserver/go.mod asks for. The working directory must be
// inside the module, as it is in a test. Concurrent calls, also of several
// processes, build once.
func Build(ctx context.Context) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", fmt.Errorf("finding the module's root: %w", err)
	}
	source := filepath.Join(root, "testdata", "kube-apiserver")
	binary := filepath.Join(root, "bin", "kube-apiserver")
	want, err := wantedVersion(filepath.Join(source, "go.mod"))
	if err != nil {
		return "", err
	}

	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return "", err
	}
	lock, err := fileutil.LockFile(binary+".lock", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return "", fmt.Errorf("waiting for another build: %w", err)
	}
	defer lock.Close()

	if builtVersion(binary) == want {
		return binary, nil
	}
	// A name of its own first: a build that is cut short leaves no binary.
	unfinished := binary + ".new"
	cmd := exec.CommandContext(ctx, "go", "build", "-C", source, "-o", unfinished, ".")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, output)
	}
	if err := os.Rename(unfinished, binary); err != nil {
		return "", err
	}
	return binary, nil
}

// moduleRoot is the directory of the go.mod that the go command would use here.
func moduleRoot(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	gomod := string(bytes.TrimSpace(output))
	if gomod == "" || gomod == os.DevNull {
		return "", errNoModule
	}
	return filepath.Dir(gomod), nil
}

// wantedVersion is the version of Kubernetes that a go.mod requires.
func wantedVersion(gomod string) (string, error) {
	content, err := os.ReadFile(gomod)
	if err != nil {
		return "", err
	}
	file, err := modfile.ParseLax(gomod, content, nil)
	if err != nil {
		return "", err
	}
	for _, require := range file.Require {
		if require.Mod.Path == kubernetesModule {
			return require.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s doesn't require %s", gomod, kubernetesModule)
}

// builtVersion is the version of Kubernetes that a binary was built from, as
// the linker recorded it; empty when there is no such binary.
func builtVersion(binary string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == kubernetesModule {
			return dep.Version
		}
	}
	return ""
}
