// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/relay"
)

// balancer are the addresses at which a subject finds the sources: relays in this
// process, behind which each source etcd can be replaced by another one, as the
// load balancer of a cluster's API servers replaces one replica by another.
type balancer struct {
	// configs is a directory as --clustermesh-config wants it.
	configs string
	relays  []*relay.Relay // one for each source etcd, in their order
}

// newBalancer opens addresses that lead to the sources. name is that of its
// files.
func (b *benchmark) newBalancer(sources *sources, name string) (_ *balancer, err error) {
	out := &balancer{configs: filepath.Join(b.dir, name)}
	defer func() {
		if err != nil {
			out.close()
		}
	}()
	if err := os.MkdirAll(out.configs, 0o700); err != nil {
		return nil, fmt.Errorf("writing configurations: %w", err)
	}
	for range sources.etcds {
		r, err := relay.Listen(strings.TrimPrefix(b.network.url(), "http://"))
		if err != nil {
			return nil, err
		}
		out.relays = append(out.relays, r)
	}
	for i := range b.config.Mesh.Clusters {
		url := "http://" + out.relays[i%len(out.relays)].Address()
		if err := os.WriteFile(filepath.Join(out.configs, b.config.Mesh.Cluster(i).Name), etcdConfig(url), 0o600); err != nil {
			return nil, fmt.Errorf("writing configurations: %w", err)
		}
	}
	out.aim(sources)
	return out, nil
}

// aim has the addresses lead to other etcds, and breaks all connections.
func (b *balancer) aim(to *sources) {
	for i, r := range b.relays {
		r.Aim(strings.TrimPrefix(to.etcds[i].url, "http://"))
	}
}

func (b *balancer) close() {
	for _, r := range b.relays {
		r.Close()
	}
}

// pause stops the etcds where they are, so that those which nobody is connected to
// take nothing of the processor.
func (s *sources) pause() error {
	s.stopBeats()
	s.stopBeats = func() {}
	for _, e := range s.etcds {
		if err := e.Pause(); err != nil {
			return err
		}
	}
	return nil
}

// resume undoes pause.
func (s *sources) resume() error {
	for _, e := range s.etcds {
		if err := e.Resume(); err != nil {
			return err
		}
	}
	return nil
}

// beatLater begins to write heartbeats as soon as the clients are connected
// again: that they weren't answered for a while has cost them their connections.
func (s *sources) beatLater(ctx context.Context, b *benchmark) {
	ctx, cancel := context.WithCancel(ctx)
	began := make(chan func(), 1)
	go func() {
		for _, e := range s.etcds {
			if _, err := e.client.WaitReady(ctx, wire.HeartbeatKey, func(error) {}); err != nil {
				break // ctx has ended
			}
		}
		began <- beat(ctx, b.config.Log, s.etcds...)
	}()
	s.stopBeats = func() { cancel(); (<-began)() }
}
