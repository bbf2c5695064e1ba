// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// runText runs a script as a user would, and gives what it printed.
func runText(t *testing.T, text string, timeout time.Duration) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script.txtar")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var out bytes.Buffer
	err := RunFile(ctx, file, &out, Options{Log: hivetest.Logger(t)})
	return out.String(), err
}

// TestRunFile tells success from failure, and says where and why.
func TestRunFile(t *testing.T) {
	out, err := runText(t, "# All is well.\ncmp a b\n\n-- a --\nx\n-- b --\nx\n", time.Minute)
	require.NoError(t, err)
	require.Contains(t, out, "# All is well.")
	require.Contains(t, out, "> cmp a b")

	_, err = runText(t, "echo x\nstdout y\n", time.Minute)
	require.ErrorContains(t, err, "script.txtar:2: stdout y")

	_, err = runText(t, "nonsense\n", time.Minute)
	require.ErrorContains(t, err, "script.txtar:1: nonsense: unknown command")

	out, err = runText(t, "skip 'no kernel'\nnonsense\n", time.Minute)
	require.NoError(t, err)
	require.Contains(t, out, "skipped: no kernel")

	err = RunFile(t.Context(), filepath.Join(t.TempDir(), "missing"), &bytes.Buffer{}, Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestRunFileTimeout says what a command that was tried until the end complained
// of, which the engine keeps to itself.
func TestRunFileTimeout(t *testing.T) {
	_, err := runText(t, "* cmp a b\n\n-- a --\nx\n-- b --\ny\n", 100*time.Millisecond)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "cmp: a and b differ")
}

const (
	// aCluster is a script in which there is a cluster whose objects may change, and
	// begin one in which they do.
	aCluster = "agent/start c1 --cluster-id=1\n"
	begin    = "c1/k8s/churn --every=1ms a.yaml\n"
	anObject = "\n-- a.yaml --\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a-$N\n"
)

// TestChurn changes objects for as long as the script says, and leaves none.
func TestChurn(t *testing.T) {
	out, err := runText(t, aCluster+"c1/k8s/churn --every=1ms --at-least=200 a.yaml\n\n# Wait for it.\n* c1/k8s/list v1.namespaces ''\n* stdout 'a-[0-9]'\n\n"+
		"# It ends.\nc1/k8s/churn-stop\nc1/k8s/list v1.namespaces ''\n! stdout 'a-[0-9]'\n"+begin+anObject, time.Minute)
	require.NoError(t, err, out)
	require.Regexp(t, `[2-9]\d\d changes|\d{4,} changes`, out)
}

// TestMistakes are those that somebody who writes a script makes.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"exporter/start c1":                                              "ID of cluster \"c1\" isn't known yet",
		"exporter/start --cluster-id=1 c1":                               "the cluster's name comes first",
		"exporter/start c1 --cluster-id=1":                               "there is no etcd \"c1\"",
		"agent/start c1 --cluster-id=1 --nonsense=1":                     "unknown flag: --nonsense",
		"agent/start c1 --cluster-id=1\nagent/start c1":                  "c1/agent runs already",
		"agent/restart c1":                                               "there is no c1/agent",
		"agent/start c1 --cluster-id=256":                                "cluster",
		"mesh/connect c1 c2":                                             "there is no etcd \"c2\"",
		"mesh/disconnect c1 c2":                                          "wasn't connected",
		"net/cut c1/agent/c2":                                            "there is no link \"c1/agent/c2\"",
		"net/switch c1/agent c2":                                         "there is no link",
		"etcd/wipe c1":                                                   "there is no etcd",
		"etcd/put-on-lease c1 k soon":                                    "invalid duration",
		"etcd/start":                                                     "which etcds",
		"etcd/start c1\netcd/start c1":                                   "runs already",
		"etcd/start c1\netcd/stop c1\netcd/compact c1":                   "isn't running",
		"etcd/start c1\netcd/wipe --token=new c1":                        "same or other",
		"etcd/start c1\netcd/stop c1\nc1/kvstore/history cilium/":        "isn't running",
		"etcd/start c1\nc1/kvstore/vanished":                             "which prefixes",
		aCluster + "c1/k8s/churn-stop":                                   "nothing of c1 changes",
		aCluster + "c1/k8s/churn":                                        "which templates",
		aCluster + "c1/k8s/churn --count=0 a.yaml":                       "must be more than 0",
		aCluster + "c1/k8s/churn a.yaml":                                 "a.yaml",
		aCluster + "c1/k8s/churn a.yaml\n-- a.yaml --\nname: a":          "there is no $N in it",
		aCluster + begin + "c1/k8s/churn a.yaml" + anObject:              "change already",
		aCluster + begin + "c1/k8s/churn-stop\n-- a.yaml --\nkind: a-$N": "/churn/0-",
		"file/fill f lots":                                               "invalid syntax",
		"sleep 1s":                                                       "unknown command",
		"etcd/start c1\nkvstoremesh/start c1 --cluster-id=1000\n":        "cluster",
		"etcd/start c1\nexporter/start c1 --cluster-id=1 --etcd=other":   "there is no etcd \"other\"",
	} {
		_, err := runText(t, text+"\n", time.Minute)
		require.ErrorContains(t, err, want, text)
	}
}

// TestListCommands describes every command.
func TestListCommands(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, ListCommands(&out))
	for _, name := range []string{"etcd/wipe", "exporter/start", "mesh/connect", "net/switch", "skip"} {
		require.Contains(t, out.String(), "\n"+name)
	}
}
