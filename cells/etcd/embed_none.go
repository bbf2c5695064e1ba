// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package etcd

import (
	"context"

	"github.com/cilium/hive/cell"
)

// OwnServerCell runs nothing, and has no flags: who writes to an etcd has to name it with
// --kvstore-opt, and is told so at the start.
var OwnServerCell = cell.Provide(newOwnServer, func() ServerFlags { return DefaultServerFlags })

// PrivateOwnServerCell is OwnServerCell for the module around it alone, which also brings
// the ServerFlags: see PrivateCell.
var PrivateOwnServerCell = cell.ProvidePrivate(newOwnServer)

// StartServer returns ErrNoServer.
func StartServer(context.Context, ServerConfig) (*Server, error) { return nil, ErrNoServer }
