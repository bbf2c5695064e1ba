// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package operator_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/testing/jobs"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// replica is a cilium-operator in a process of its own.
type replica struct {
	t      *testing.T
	socket string // of its in-cluster cache
	client *etcd.Client
	shell  string // its socket
	// kill is a SIGKILL: it gives nothing back, the leader's lease included.
	kill func()
}

// startReplica starts an operator with these flags, beside what keeps replicas on one
// machine from one another's ports.
func startReplica(t *testing.T, flags ...string) *replica {
	t.Helper()
	dir, err := os.MkdirTemp("", "operator-") // a socket's path has to be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	program, err := os.Executable()
	require.NoError(t, err)

	r := &replica{t: t, socket: "unix://" + filepath.Join(dir, "etcd.sock")}
	process := exec.Command(program, append([]string{
		"--operator-api-serve-addr=127.0.0.1:0", "--operator-prometheus-serve-addr=127.0.0.1:0", "--enable-gops=false",
		"--incluster-cache-listen-client-urls=" + r.socket,
	}, flags...)...)
	process.Env = append(os.Environ(), asOperator+"=1")
	process.Stdout, process.Stderr = log, log
	process.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}

	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		// The death signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := process.Start()
		started <- err
		if err == nil {
			_ = process.Wait() // its error is the kill
		}
	}()
	require.NoError(t, <-started)
	r.shell, err = jobs.ShellOf(process.Process.Pid)
	require.NoError(t, err)
	r.kill = sync.OnceFunc(func() {
		_ = process.Process.Kill()
		<-ended
		_ = log.Close()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("an operator said:\n%s", said[max(0, len(said)-16<<10):])
		}
	})
	t.Cleanup(r.kill)

	r.client, err = etcd.NewClient(mesh.Log(t), etcd.ClientConfig{Endpoints: []string{r.socket}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.client.Close()) })
	return r
}

// keys are the keys in an etcd; none if it doesn't answer.
func keys(t *testing.T, client *etcd.Client) []string {
	resp, err := client.Etcd().Get(t.Context(), "cilium/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil
	}
	var out []string
	for _, kv := range resp.Kvs {
		out = append(out, strings.TrimPrefix(string(kv.Key), "cilium/"))
	}
	return out
}

// requireJobs waits until each job of ours in the operator says something of itself, and
// some of each of these modules run.
func (r *replica) requireJobs(modules ...string) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		rows, err := jobs.Ask(r.shell)
		require.NoError(c, err)
		ours := map[string][]types.Status{}
		for _, row := range rows {
			if len(row.ID.Module) > 1 && row.ID.Module[0] == "waggle" {
				ours[row.ID.Module[1]] = append(ours[row.ID.Module[1]], row)
			}
		}
		require.Subset(c, slices.Collect(maps.Keys(ours)), modules)
		for _, rows := range ours {
			_, silent := jobs.Silent(slices.Values(rows))
			require.Empty(c, silent)
		}
		for _, module := range modules {
			names, _ := jobs.Silent(slices.Values(ours[module]))
			require.NotEmpty(c, names, module)
		}
	}, patience, tick)
}
