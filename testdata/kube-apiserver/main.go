// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Command kube-apiserver is the unmodified Kubernetes API server, which the
// tests run against an embedded etcd.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
