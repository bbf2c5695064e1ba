// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cilium/cilium/pkg/controller"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// TestEveryUnusedFlagIsNamed derives which configuration means nothing, and holds unused to
// it: that of a hive which nobody takes but who reports it, field by field, and the
// options of etcd by which nothing changes.
func TestEveryUnusedFlagIsNamed(t *testing.T) {
	// Read by upstream's set-up of logs, out of the flags themselves.
	const logging = "option.LegacyClusterMeshConfig"
	nobodys := map[string]bool{}
	for name, cells := range map[string]cell.Cell{"clustermesh": ClusterMesh, "kvstoremesh": KVStoreMesh} {
		for _, config := range unread(t, cells) {
			nobodys[config] = true
		}
		require.Contains(t, nobodys, logging, name)
	}
	require.Equal(t, []string{logging}, unread(t, InClusterCache), "which reports nothing")
	delete(nobodys, logging)

	all := unusedParams{Store: defaultStoreConfig, CRDs: synced.DefaultCRDSyncConfig}
	params := reflect.ValueOf(&all).Elem()
	for i := range params.NumField() {
		config := params.Field(i)
		if !nobodys[config.Type().String()] {
			continue
		}
		delete(nobodys, config.Type().String())
		for j := range config.NumField() {
			was := reflect.ValueOf(config.Field(j).Interface())
			switch field := config.Field(j); field.Kind() {
			case reflect.String:
				field.SetString(field.String() + "x")
			case reflect.Uint:
				field.SetUint(field.Uint() + 1)
			case reflect.Int64:
				field.SetInt(field.Int() + 1)
			default:
				t.Fatalf("no other value is known for a %s", field.Type())
			}
			said, err := startUnused(t, all)
			require.True(t, said != "" || err != nil, "%s.%s is neither named nor refused", config.Type(), config.Type().Field(j).Name)
			config.Field(j).Set(was)
		}
	}
	require.Empty(t, nobodys, "nobody takes these, and nobody says so")

	options := etcdOptions(t)
	require.Contains(t, options, etcd.OptQPS)
	for _, option := range options {
		if option == etcd.OptAddress || option == etcd.OptConfig {
			continue
		}
		parsed, err := etcd.ParseOptions(map[string]string{option: "7"})
		if err != nil {
			parsed, err = etcd.ParseOptions(map[string]string{option: "7s"})
		}
		require.NoError(t, err)
		p := unusedParams{Store: defaultStoreConfig, Etcd: etcd.Config{}.With(option, "7")}
		require.Equal(t, parsed == etcd.DefaultOptions, len(p.unused()) == 1, option)
	}
}

// unread are the types of configuration in a hive that nobody takes but reportUnused.
func unread(t *testing.T, cells cell.Cell) (types []string) {
	t.Helper()
	var out strings.Builder
	hive.New(cells).PrintObjects(&out, slog.New(slog.DiscardHandler))
	// A line begins with a symbol, unless it goes on with the last one's.
	taken, by, inputs := map[string]bool{}, "", false
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSpace(line)
		symbol, rest, _ := strings.Cut(line, " ")
		if first, _ := utf8.DecodeRuneInString(symbol); first < 0x2000 {
			rest = line
		} else if inputs = symbol == "⇨"; symbol == "⚙️" {
			name, _, _ := strings.Cut(strings.TrimPrefix(rest, "("), ")")
			types = append(types, name)
		} else if !inputs {
			by = line
		}
		if inputs && !strings.Contains(by, "reportUnused") {
			for input := range strings.SplitSeq(rest, ",") {
				input, _, _ = strings.Cut(strings.TrimSpace(input), "[") // optional
				taken[input] = true
			}
		}
	}
	require.NotEmpty(t, types)
	require.NotEmpty(t, taken)
	return slices.DeleteFunc(types, func(name string) bool { return taken[name] })
}

// etcdOptions are the values of the constants that name options of --kvstore-opt.
func etcdOptions(t *testing.T) (options []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../etcd/config.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Opt") && len(spec.Values) == 1 {
			option, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			options = append(options, option)
		}
		return true
	})
	return options
}

// startUnused gives what is said at start.
func startUnused(t *testing.T, p unusedParams) (string, error) {
	t.Helper()
	var said bytes.Buffer
	lifecycle := &cell.DefaultLifecycle{}
	p.Log, p.Lifecycle = slog.New(slog.NewTextHandler(&said, nil)), lifecycle
	reportUnused(p)
	require.Empty(t, said.String())
	err := lifecycle.Start(slog.New(slog.DiscardHandler), t.Context())
	return said.String(), err
}

// TestUnused: what has no effect is accepted and named at start, and no default is.
func TestUnused(t *testing.T) {
	start := func(p unusedParams) (string, error) { return startUnused(t, p) }
	said, err := start(unusedParams{Store: defaultStoreConfig, CRDs: synced.DefaultCRDSyncConfig})
	require.NoError(t, err)
	require.Empty(t, said)

	p := unusedParams{
		Store: defaultStoreConfig, Controllers: controller.Config{ControllerGroupMetrics: []string{"all"}},
		Etcd: etcd.Config{}.With(etcd.OptLimit, "256").With(etcd.OptBootstrapQPS, "100"),
		CRDs: synced.CRDSyncConfig{CRDWaitTimeout: time.Hour},
	}
	p.Store.QuorumErrs++
	said, err = start(p)
	require.NoError(t, err)
	for _, flag := range []string{
		"--kvstore-max-consecutive-quorum-errors", "--controller-group-metrics", "--crd-wait-timeout",
		`"--kvstore-opt etcd.limit"`, `"--kvstore-opt etcd.bootstrapQps"`,
	} {
		require.Contains(t, said, "flag="+flag)
	}

	p.Store.KVStore = "consul"
	_, err = start(p)
	require.ErrorContains(t, err, `--kvstore="consul"`)
}
