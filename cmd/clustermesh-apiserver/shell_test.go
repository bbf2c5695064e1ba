// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/waggle-mesh/waggle/testing/jobs"
)

// notOurs are the modules whose jobs are upstream's.
var notOurs = []string{"health", "shell"}

// checkShell asks a container of the pod that runs by its shell, as an operator does with
// the program itself: all is well, and each of its jobs, these among them, says something
// of itself.
func checkShell(t *testing.T, c corev1.Container, p *pod, running *exec.Cmd, want ...string) {
	t.Helper()
	socket, err := jobs.ShellOf(running.Process.Pid)
	require.NoError(t, err)
	c.Args = []string{"shell", "--shell-sock-path=" + socket, "waggle/status"}
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		rows, err := jobs.Ask(socket)
		require.NoError(collect, err)
		names, silent := jobs.Silent(slices.Values(slices.DeleteFunc(rows, func(row types.Status) bool {
			return slices.ContainsFunc(notOurs, func(module string) bool { return slices.Contains(row.ID.Module, module) })
		})))
		require.Subset(collect, names, want)
		require.Empty(collect, silent)
		output, err := p.command(c).CombinedOutput()
		require.NoError(collect, err, "%s", output)
		require.Contains(collect, string(output), "Health:   OK\n")
	}, patience, 50*time.Millisecond)
}

// healthOf is what the jobs of a container say of themselves.
func healthOf(t require.TestingT, running *exec.Cmd) (said []string) {
	socket, err := jobs.ShellOf(running.Process.Pid)
	require.NoError(t, err)
	rows, err := jobs.Ask(socket)
	require.NoError(t, err)
	for _, row := range rows {
		if name, found := jobs.NameOf(&row); found {
			said = append(said, describe(name, &row))
		}
	}
	return said
}

func describe(name string, row *types.Status) string {
	return fmt.Sprintf("%s: %s: %s", name, row.Level, row.Message)
}
