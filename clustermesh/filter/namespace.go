// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package filter decides what is synced, and where to. Its functions are pure:
// what they read is passed in, and the exporter asks them again, for what it
// concerns and nothing else, when that changes.
//
//	namespace.go  which namespaces export at all
//	workload.go   what a pod says about itself
//	decide.go     where an endpoint or an identity goes, of a source
//	region.go     what is left out on the way to another region, by a consumer
//	explain.go    the same decisions with their reasons, rule by rule
package filter

import (
	"strings"

	"github.com/spf13/pflag"
)

const (
	// GlobalNamespaceAnnotation is the annotation by which a namespace says
	// whether it is global. Its owners set it, so it overrides the flag.
	GlobalNamespaceAnnotation = "clustermesh.cilium.io/global"

	// FlagDefaultGlobalNamespace is upstream's name for the flag that decides
	// for the namespaces without the annotation.
	FlagDefaultGlobalNamespace = "clustermesh-default-global-namespace"
)

// NamespacePolicy says which namespaces are global. One that isn't exports
// nothing. It is also the configuration struct of its flag.
type NamespacePolicy struct {
	// DefaultGlobal decides for namespaces without the annotation.
	DefaultGlobal bool `mapstructure:"clustermesh-default-global-namespace"`
}

// DefaultNamespacePolicy is upstream's default: whatever isn't annotated is global.
var DefaultNamespacePolicy = NamespacePolicy{DefaultGlobal: true}

// Flags registers the flag with p's value as its default.
func (p NamespacePolicy) Flags(flags *pflag.FlagSet) {
	flags.Bool(FlagDefaultGlobalNamespace, p.DefaultGlobal,
		"Export namespaces that have no annotation "+GlobalNamespaceAnnotation)
}

// Global says whether a namespace with these annotations is global. Only "true",
// in any case, is true: a namespace whose owner mistyped the annotation meant to
// say something about it, and rather stays at home than leaks.
func (p NamespacePolicy) Global(annotations map[string]string) bool {
	value, ok := annotations[GlobalNamespaceAnnotation]
	if !ok {
		return p.DefaultGlobal
	}
	return strings.EqualFold(value, "true")
}
