// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Chart renders upstream's Helm chart for a test, and prints the manifests as YAML.
//
//	chart [--namespace NAME] [--values FILE]... CHART-DIRECTORY
//
// It is a module of its own: Helm's library brings many others, which nothing else
// here needs.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

func main() {
	namespace := flag.String("namespace", "kube-system", "namespace of the release")
	var values files
	flag.Var(&values, "values", "file of values; may be given several times")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := render(flag.Arg(0), *namespace, values); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// files is a flag that adds up.
type files []string

func (f *files) String() string { return strings.Join(*f, ",") }

func (f *files) Set(value string) error { *f = append(*f, value); return nil }

func render(directory, namespace string, files []string) error {
	chart, err := loader.LoadDir(directory)
	if err != nil {
		return fmt.Errorf("loading chart %q: %w", directory, err)
	}
	values := map[string]any{}
	for _, file := range files {
		more, err := chartutil.ReadValuesFile(file)
		if err != nil {
			return fmt.Errorf("reading values %q: %w", file, err)
		}
		values = chartutil.CoalesceTables(more, values) // a later file counts
	}
	all, err := chartutil.ToRenderValues(chart, values,
		chartutil.ReleaseOptions{Name: "cilium", Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		return fmt.Errorf("merging values: %w", err)
	}
	manifests, err := engine.Render(chart, all)
	if err != nil {
		return fmt.Errorf("rendering chart %q: %w", directory, err)
	}
	for name, content := range manifests {
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(content) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, content)
		}
	}
	return nil
}
