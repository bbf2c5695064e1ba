// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package etcd

import (
	"context"

	"github.com/cilium/hive/cell"
)

// OwnServerCell and PrivateOwnServerCell are nothing: who writes to an etcd has to name it
// with --kvstore-opt.
var OwnServerCell, PrivateOwnServerCell = cell.Group(), cell.Group()

// StartServer returns ErrNoServer.
func StartServer(context.Context, ServerConfig) (*Server, error) { return nil, ErrNoServer }
