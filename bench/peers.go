// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build peers

package bench

// What the peers are built from, so that "go mod tidy" keeps the checksums of
// all that they need. With this tag only the peers' own programs are built: see
// bin/upstream-… in the Makefile.
import (
	_ "github.com/cilium/cilium/clustermesh-apiserver/cmd"
	_ "go.etcd.io/etcd/server/v3/etcdmain"
)
