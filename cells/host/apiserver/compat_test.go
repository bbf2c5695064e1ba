// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	upstreammesh "github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	upstreamcmd "github.com/cilium/cilium/clustermesh-apiserver/cmd"
	upstreamcommon "github.com/cilium/cilium/clustermesh-apiserver/common"
	upstreamkvstoremesh "github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// neverFed begins a metric that upstream's metrics.Cell registers outside of the hive,
// and that has no values here: TestChart of cmd/clustermesh-apiserver scrapes them.
const neverFed = "0metric "

// TestSameAsUpstream compares commands, flags and metrics with those of upstream's
// program. Each difference is in testdata/differences.txt with its reason; one that
// isn't there fails, and so does a line there that is no difference.
func TestSameAsUpstream(t *testing.T) {
	found := map[string]bool{}
	for line := range commandDifferences(upstreamcmd.RootCmd, NewRootCmd()) {
		found[line] = true
	}
	for namespace, of := range map[string]struct{ upstream, ours cell.Cell }{
		metrics.CiliumClusterMeshAPIServerNamespace: {cell.Group(upstreamcommon.Cell, upstreammesh.Cell), ClusterMesh},
		metrics.CiliumKVStoreMeshNamespace:          {cell.Group(upstreamcommon.Cell, upstreamkvstoremesh.Cell), KVStoreMesh},
	} {
		for line := range differences("metric", metricsOf(t, namespace, of.upstream), metricsOf(t, namespace, of.ours)) {
			found[line] = true
		}
	}

	reviewed := reviewedDifferences(t)
	seen := map[string]bool{}
	for _, line := range slices.Sorted(maps.Keys(found)) {
		known := false
		for difference := range reviewed {
			if prefix, many := strings.CutSuffix(difference, "*"); line == difference || many && strings.HasPrefix(line, prefix) {
				known, seen[difference] = true, true
			}
		}
		if !known {
			t.Errorf("differs from upstream, and isn't in testdata/differences.txt: %s", line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(reviewed)) {
		if !seen[line] && !strings.HasPrefix(reviewed[line], mayEnd) && !strings.HasPrefix(line, neverFed) {
			t.Errorf("is in testdata/differences.txt, and doesn't differ from upstream: %s", line)
		}
	}
}

// mayEnd begins the reason of a difference that needn't be one.
const mayEnd = "(may end) "

// reviewedDifferences reads lines of a difference, a colon and its reason. One that ends
// with an asterisk is all that begin so.
func reviewedDifferences(t *testing.T) map[string]string {
	data, err := os.ReadFile("testdata/differences.txt")
	require.NoError(t, err)
	reviewed := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		difference, reason, _ := strings.Cut(line, ": ")
		require.NotEmpty(t, strings.TrimSpace(reason), "without a reason: %s", line)
		require.NotContains(t, reviewed, difference, "twice")
		reviewed[difference] = reason
	}
	return reviewed
}

// differences says of each name what only upstream has (-), what only we have (+) and
// what isn't the same (~).
func differences(kind string, upstream, ours map[string]string) map[string]bool {
	lines := map[string]bool{}
	for name, theirs := range upstream {
		switch mine, ok := ours[name]; {
		case !ok:
			lines[fmt.Sprintf("-%s %s", kind, name)] = true
		case mine != theirs:
			lines[fmt.Sprintf("~%s %s (%s, not %s)", kind, name, mine, theirs)] = true
		}
	}
	for name := range ours {
		if _, ok := upstream[name]; !ok {
			lines[fmt.Sprintf("+%s %s", kind, name)] = true
		}
	}
	return lines
}

// commandDifferences compares two trees of commands with their flags.
func commandDifferences(upstream, ours *cobra.Command) map[string]bool {
	lines := map[string]bool{}
	theirs, mine := commands(upstream), commands(ours)
	for path := range theirs {
		if mine[path] == nil {
			lines["-command "+path] = true
		}
	}
	for path, cmd := range mine {
		if theirs[path] == nil {
			lines["+command "+path] = true
			continue
		}
		// Whatever prints a hive has the flags of what runs it.
		runs, _, _ := strings.Cut(path, " hive")
		for line := range differences("flag", flagsOf(theirs[path]), flagsOf(cmd)) {
			lines[line[:1]+runs+" "+line[1:]] = true
		}
	}
	return lines
}

// commands are all below the root, by their path without its name.
func commands(root *cobra.Command) map[string]*cobra.Command {
	all := map[string]*cobra.Command{}
	var walk func(prefix string, cmd *cobra.Command)
	walk = func(prefix string, cmd *cobra.Command) {
		for _, child := range cmd.Commands() {
			path := strings.TrimSpace(prefix + " " + child.Name())
			all[path] = child
			walk(path, child)
		}
	}
	walk("", root)
	return all
}

func flagsOf(cmd *cobra.Command) map[string]string {
	flags := map[string]string{}
	add := func(f *pflag.Flag) {
		flags["--"+f.Name] = fmt.Sprintf("%s, default %q, shorthand %q, hidden %t, deprecated %q",
			f.Value.Type(), f.DefValue, f.Shorthand, f.Hidden, f.Deprecated)
	}
	cmd.Flags().VisitAll(add)
	cmd.PersistentFlags().VisitAll(add)
	return flags
}

// metricsOf gives the labels of each metric of a hive, which isn't started.
func metricsOf(t *testing.T, namespace string, cells cell.Cell) map[string]string {
	t.Helper()
	metrics.Namespace = namespace // as the commands do it; the constructors read it
	type gathered struct {
		cell.In

		Metrics []metric.WithMetadata `group:"hive-metrics"`
	}
	all := map[string]string{}
	require.NoError(t, hive.New(cells, cell.Invoke(func(of gathered) {
		for _, one := range of.Metrics {
			descriptions := make(chan *prometheus.Desc)
			go func() {
				defer close(descriptions)
				one.(prometheus.Collector).Describe(descriptions)
			}()
			for desc := range descriptions {
				match := description.FindStringSubmatch(desc.String())
				require.Len(t, match, 4, desc.String())
				all[match[1]] = "labels " + match[2] + match[3]
			}
		}
	})).Populate(slog.New(slog.DiscardHandler)))
	return all
}

// description is how a prometheus.Desc prints itself: there is no other way to ask it.
var description = regexp.MustCompile(`fqName: "([^"]+)", .*constLabels: (\{.*\}), variableLabels: (\{.*\})\}$`)
