// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"flag"
	"log/slog"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/stretchr/testify/assert"
	"go.uber.org/goleak"
)

var (
	debug    = flag.Bool("debug", false, "Enable debug logging")
	pattern  = flag.String("scripts", "*", "Run only the scripts of testdata/scripts with these names")
	parallel = 4 // scripts at once: most of what they do is wait
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// scriptTimeout bounds one script. A script whose condition never comes true
// takes as long; one that succeeds takes a few seconds.
const scriptTimeout = 2 * time.Minute

// faults is the probability of the runs with faults.
const faults = 0.1

// TestScripts runs the scripts of testdata/scripts: what a mesh does, as its
// users would see it.
func TestScripts(t *testing.T) { runScripts(t, Options{}) }

// TestScriptsUnderFaults runs the same while connections are cut at random.
func TestScriptsUnderFaults(t *testing.T) { runScripts(t, Options{Faults: faults}) }

func runScripts(t *testing.T, options Options) {
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	t.Cleanup(cancel)
	setup := func(t testing.TB, _ []string) *script.Engine {
		options := options
		options.Log = hivetest.Logger(t, hivetest.LogLevel(level))
		mesh := New(options)
		t.Cleanup(func() { assert.NoError(t, mesh.Close()) })
		engine := mesh.Engine()
		engine.Cmds["skip"] = scripttest.Skip()
		return engine
	}
	scripttest.Test(t, ctx, setup, nil, "../../testdata/scripts/"+*pattern+".txtar")
}
