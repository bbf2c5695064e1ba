// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// Cell serves look-ups in the hive of a KVStoreMesh, whose connections it uses. Without
// --ondemand-listen-address it does nothing.
var Cell = cell.Module(
	"ondemand-read-through",
	"Look-ups of what is not pushed by remote clusters",

	cell.Config(DefaultConfig),
	cell.Provide(newMetrics),
	cell.Invoke(register),
)

type params struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Config    Config
	Mesh      *remote.Mesh
	Local     wire.ClusterInfo
	Metrics   *Metrics
	// Replication has the region of this cluster.
	Replication kvstoremesh.Config
}

// listener is the server through a hive's life.
type listener struct {
	params
	server *grpc.Server
	cancel context.CancelFunc
}

func register(p params) error {
	if !p.Config.enabled() {
		return p.Config.without()
	}
	if err := p.Config.validate(); err != nil {
		return err
	}
	if !p.Mesh.Enabled() {
		return fmt.Errorf("--%s has no effect without --clustermesh-config: there is no remote cluster to look anything up in", FlagListenAddress)
	}
	p.Lifecycle.Append(&listener{params: p})
	return nil
}

// Start implements cell.HookInterface.
func (l *listener) Start(ctx cell.HookContext) error {
	certificates, err := newCertificates(l.Config, l.Log, l.Metrics)
	if err != nil {
		return err
	}
	address, err := l.Config.listen(ctx)
	if err != nil {
		return err
	}
	stopped, cancel := context.WithCancel(context.Background())
	s := &server{source: newSource(stopped, l.Mesh, l.Local, l.Replication.ClusterRegion, l.Config, l.Metrics), metrics: l.Metrics}
	if l.Config.secure() {
		s.names = l.Config.AllowedNames
	}
	l.server, l.cancel = s.grpc(certificates.credentials()), cancel
	l.Log.Info("Serving look-ups of what remote clusters don't push", "address", address.Addr(), "client-certificates", l.Config.secure())
	l.Jobs.Add(job.OneShot("serve", func(_ context.Context, health cell.Health) error {
		return l.serve(address, certificates, health)
	}))
	return nil
}

// serve is a job, until Stop.
func (l *listener) serve(address net.Listener, certificates *certificates, health cell.Health) error {
	serving := fmt.Sprintf("Serving at %s", address.Addr())
	health.OK(serving)
	certificates.watch(func(err error) {
		if err != nil {
			health.Degraded("Certificates can't be read again, the last ones that could be are used", err)
			return
		}
		health.OK(serving)
	})
	if err := l.server.Serve(address); err != nil {
		err = fmt.Errorf("serving at %s: %w", address.Addr(), err)
		health.Degraded("Look-ups are not served", err)
		return err
	}
	return nil
}

// Stop implements cell.HookInterface.
func (l *listener) Stop(cell.HookContext) error {
	l.cancel() // look-ups under way
	l.server.Stop()
	return nil
}
