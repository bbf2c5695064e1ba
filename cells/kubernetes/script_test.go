// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"context"
	"flag"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	"github.com/cilium/cilium/pkg/hive"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var debug = flag.Bool("debug", false, "Enable debug logging")

// newHive is the room with what it needs, on upstream's fake clientset.
func newHive(cells ...cell.Cell) *hive.Hive {
	return hive.New(append([]cell.Cell{
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(mcsapitypes.DefaultMCSAPIConfig),
		fakeclient.FakeClientCell(),
		state.Cell,
		kubernetes.Cell,
		cell.Config(readPods{}),
		cell.Provide(func(c readPods) kubernetes.PodMetadata { return kubernetes.PodMetadata(c.ReadPods) }),
	}, cells...)...)
}

// readPods is the flag by which scripts read pods; the exporter does by its filters.
type readPods struct{ ReadPods bool }

func (readPods) Flags(flags *pflag.FlagSet) { flags.Bool("read-pods", false, "Read what pods say") }

// TestScript runs the scripts of testdata: objects in, tables out. $WORK in a
// script's flags is its working directory.
func TestScript(t *testing.T) {
	var opts []hivetest.LogOption
	if *debug {
		opts = append(opts, hivetest.LogLevel(slog.LevelDebug))
	}

	setup := func(t testing.TB, args []string) *script.Engine {
		log := hivetest.Logger(t, opts...)
		// The script's directory is the first that its test made.
		work := filepath.Join(filepath.Dir(t.TempDir()), "001")
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "$WORK", work)
		}

		h := newHive()
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		h.RegisterFlags(flags)
		require.NoError(t, flags.Parse(args), "flags of the script")
		t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })

		cmds, err := h.ScriptCommands(log)
		require.NoError(t, err)
		maps.Insert(cmds, maps.All(script.DefaultCmds()))
		return &script.Engine{Cmds: cmds, RetryInterval: 10 * time.Millisecond, MaxRetryInterval: 200 * time.Millisecond}
	}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	scripttest.Test(t, ctx, setup, nil, "testdata/*.txtar")
}
