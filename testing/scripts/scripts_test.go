// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var debug = flag.Bool("debug", false, "Enable debug logging")

// parallel is how many scripts run at once: most of their time they wait, so
// that more than there are processors is faster.
const parallel = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	explicit := false
	flag.Visit(func(f *flag.Flag) { explicit = explicit || f.Name == "test.parallel" })
	if !explicit {
		if err := flag.Set("test.parallel", parallel); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// scriptTimeout bounds one script. One whose condition never comes true takes as
// long; one that succeeds takes a few seconds.
const scriptTimeout = 2 * time.Minute

// faults is the probability of the runs with faults: one message in 50 is lost
// with its connection. At one in 20 connections end sooner than they can be used.
const faults = 0.02

// TestScripts runs the scripts of testdata/scripts: what a mesh does, as its
// users would see it.
func TestScripts(t *testing.T) { runScripts(t, Options{}) }

// TestScriptsUnderFaults runs the same while connections are cut at random.
func TestScriptsUnderFaults(t *testing.T) { runScripts(t, Options{Faults: faults}) }

func runScripts(t *testing.T, options Options) {
	files, err := filepath.Glob("../../testdata/scripts/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			// Made here, so that the wait for others doesn't count.
			ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
			defer cancel()
			scripttest.Test(t, ctx, engineOf(options), nil, file, scripttest.NoParallel)
		})
	}
}

// engineOf gives what makes the engine of one script.
func engineOf(options Options) func(testing.TB, []string) *script.Engine {
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	return func(t testing.TB, _ []string) *script.Engine {
		options := options
		options.Log = hivetest.Logger(t, hivetest.LogLevel(level))
		mesh := New(options)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("last failure of a command: %v", mesh.LastFailure())
			}
			assert.NoError(t, mesh.Close())
		})
		engine := mesh.Engine()
		engine.Cmds["skip"] = skipTest(t)
		return engine
	}
}

// skipTest is the command by which a script says why it can't run here. Where CI is set all
// of them can.
func skipTest(t testing.TB) script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "skip the test", Args: "REASON"},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 || args[0] == "" {
				return nil, script.ErrUsage
			}
			if os.Getenv("CI") != "" {
				t.Fatalf("the script can't run where it has to: %s", args[0])
			}
			t.Skipf("the script can't run here: %s", args[0])
			return nil, nil
		},
	)
}
