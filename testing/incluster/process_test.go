// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// beAgent in the environment makes the test's own program an agent with the flags of
// its command line, to be killed.
const beAgent = "WAGGLE_TEST_BE_AGENT"

// runAgent is the program then. It ends by a signal, or with the one that started it.
func runAgent() error {
	h := hive.New(cells.Agent)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	if err := h.Start(slog.New(slog.NewTextHandler(os.Stderr, nil)), context.Background()); err != nil {
		return err
	}
	// Its standard input ends when the test does, whatever way.
	_, err := os.Stdin.Read(make([]byte, 1))
	return errors.Join(errors.New("the test is over"), err)
}

// victim is an agent in a process of its own.
type victim struct {
	t   *testing.T
	dir string // its state directory
	cmd *exec.Cmd
	end func()
}

// startVictim starts an agent that is configured as another one is, in a process of
// its own, and writes snapshots all the time.
func startVictim(t *testing.T, like *mesh.Agent, node string) *victim {
	v := &victim{t: t, dir: t.TempDir()}
	program, err := os.Executable()
	require.NoError(t, err)
	log, err := os.Create(filepath.Join(t.TempDir(), "agent.log"))
	require.NoError(t, err)
	v.cmd = exec.Command(program, append(like.Args(), "--state-dir="+v.dir, "--datastore-snapshot-interval=10ms")...)
	v.cmd.Env = append(os.Environ(), beAgent+"=1", "K8S_NODE_NAME="+node)
	v.cmd.Stdout, v.cmd.Stderr = log, log
	stdin, err := v.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, v.cmd.Start())
	v.end = sync.OnceFunc(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // its error is the kill
		_ = stdin.Close()
		_ = log.Close()
		if t.Failed() {
			content, _ := os.ReadFile(log.Name())
			t.Logf("the agent that was killed said:\n%s", content)
		}
	})
	t.Cleanup(v.end)
	return v
}

// kill is a SIGKILL: nothing is written any more.
func (v *victim) kill() { v.end() }

func (v *victim) path() string { return filepath.Join(v.dir, "incluster-cache.snapshot") }

// kept waits until all that the agent knew when this was called is in its snapshot.
func (v *victim) kept() {
	v.t.Helper()
	asked := time.Now()
	for range 2 { // the first may have been begun before
		require.EventuallyWithT(v.t, func(c *assert.CollectT) {
			info, err := os.Stat(v.path())
			require.NoError(c, err)
			require.True(c, info.ModTime().After(asked), fmt.Sprint(info.ModTime()))
			asked = info.ModTime()
		}, patience, tick)
	}
}
