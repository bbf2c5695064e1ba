// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package cells

import (
	"errors"

	"github.com/cilium/hive/cell"
)

// ErrNoEmbeddedEtcd says that the program was built without its etcd.
var ErrNoEmbeddedEtcd = errors.New("this program was built without an embedded etcd")

var (
	// ownServer is nothing: a cache needs --kvstore-opt, and says so.
	ownServer = cell.Group()

	// Etcd is the hive of "waggle etcd", which can't start.
	Etcd = cell.Invoke(func(lc cell.Lifecycle) {
		lc.Append(cell.Hook{OnStart: func(cell.HookContext) error { return ErrNoEmbeddedEtcd }})
	})
)
