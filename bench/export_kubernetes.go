// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/apiserver"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The kinds of objects that endpoints are exported from.
const (
	// CEP has a CiliumEndpoint for each endpoint.
	CEP = "cep"
	// CES has CiliumEndpointSlices.
	CES = "ces"
)

// ExportModes are all kinds.
var ExportModes = []string{CEP, CES}

const (
	// apiServerProgram is the file name of the real kube-apiserver, and its target
	// in the Makefile below bin/.
	apiServerProgram = "kube-apiserver"
	// apiServerPatience is how long it has to become ready; it takes some 4 s on
	// two idle cores.
	apiServerPatience = 2 * time.Minute
	apiServerPort     = 6443
	// creationsAtOnce is the number of objects that are made at a time.
	creationsAtOnce = 16
	// sliceSize is how many endpoints the operator of upstream puts into a slice,
	// by default (--ces-max-ciliumendpoints-per-ces).
	sliceSize = 100
	// The API server has settled once it takes less than idleShare of a core for
	// settleInterval. Whatever it still has to do after settlePatience is taken as
	// what it always has.
	settleInterval, settlePatience = 500 * time.Millisecond, 30 * time.Second
	idleShare                      = 0.1
)

// apiServer is the real kube-apiserver and its etcd, each a process of its own.
type apiServer struct {
	process *process.Process
	etcd    *etcdProcess
	clients apiserver.Clients
	// kubeconfig is the path of the admin's kubeconfig.
	kubeconfig string
}

// kubernetes is an API server with the content of one cluster.
type kubernetes struct {
	*apiServer
	// cluster has room for more endpoints than there are at the start: initial
	// ones, and so many slices for each namespace.
	cluster          Cluster
	initial, perName int
	slices           map[string]*sliceWriter
}

// startAPIServer starts them, with all kinds of objects that agents read and none
// of these objects. name is that of their files.
func (b *benchmark) startAPIServer(ctx context.Context, program, name string) (_ *apiServer, err error) {
	k := &apiServer{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.etcd, err = b.startEtcd(ctx, name+"-etcd", b.network.url()); err != nil {
		return nil, err
	}
	address, err := netip.ParseAddr(b.network.address())
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for the API server: %w", err)
	}
	credentials, err := apiserver.WriteCredentials(dir, netip.AddrPortFrom(address, apiServerPort))
	if err != nil {
		return nil, err
	}
	k.kubeconfig = credentials.Kubeconfig
	if k.clients, err = apiserver.NewClients(k.kubeconfig); err != nil {
		return nil, err
	}
	k.process, err = process.Start(name, b.dir, append([]string{program}, apiserver.Flags(credentials, k.etcd.url)...), nil)
	if err != nil {
		return nil, err
	}
	if err := k.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("waiting for the API server: %w\n%s", err, k.process.LogTail())
	}
	return k, apiserver.InstallCRDs(ctx, b.config.Log, k.clients.APIExtensions)
}

// startKubernetes starts one and fills in the initial endpoints of the cluster,
// of both kinds, with their nodes and identities.
func (b *benchmark) startKubernetes(ctx context.Context, program string, cluster Cluster, initial int) (_ *kubernetes, err error) {
	k := &kubernetes{cluster: cluster, initial: initial, slices: map[string]*sliceWriter{}}
	one := len(k.namespaces()) * sliceSize
	k.perName = (cluster.mesh.Endpoints + one - 1) / one
	b.progress("starting the API server")
	if k.apiServer, err = b.startAPIServer(ctx, program, "kubernetes"); err != nil {
		return nil, err
	}
	b.progress("filling it with %d endpoints, twice", initial)
	if err := k.fill(ctx); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *apiServer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, apiServerPatience, fmt.Errorf("not ready within %s", apiServerPatience))
	defer cancel()
	alive, stop := whileAlive(ctx, k.process)
	defer stop()
	for !k.clients.Ready(alive) {
		select {
		case <-alive.Done():
			return context.Cause(alive)
		case <-time.After(lookAgain):
		}
	}
	return nil
}

// settle waits until the API server has done what follows on the writes before,
// so that no subject has that beside it.
func (k *apiServer) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	before, err := k.process.CPU()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settleInterval):
		}
		last := before
		if before, err = k.process.CPU(); (before - last).Seconds() < idleShare*settleInterval.Seconds() {
			break
		}
	}
	return err
}

func (k *apiServer) close() {
	if k.process != nil {
		k.process.Kill()
	}
	if k.etcd != nil {
		k.etcd.close()
	}
	k.clients.Close()
}

// namespaces are those that the cluster's identities are in.
func (k *kubernetes) namespaces() map[string]struct{} {
	out := map[string]struct{}{}
	for i := range k.cluster.mesh.Identities {
		out[k.cluster.workload(i).namespace] = struct{}{}
	}
	return out
}

// createAll makes n objects, several at a time.
func createAll(ctx context.Context, n int, one func(ctx context.Context, i int) error) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(creationsAtOnce)
	for i := range n {
		all.Go(func() error { return one(ctx, i) })
	}
	return all.Wait()
}

func (k *kubernetes) fill(ctx context.Context) error {
	for name := range k.namespaces() {
		if err := k.clients.CreateNamespace(ctx, name); err != nil {
			return err
		}
	}
	mesh := k.cluster.mesh
	return errors.Join(
		createAll(ctx, mesh.Identities, func(ctx context.Context, i int) error {
			return k.clients.CreateIdentity(ctx, wire.IdentityKey(k.cluster.workload(i).identity), k.cluster.identityLabels(i))
		}),
		createAll(ctx, mesh.Nodes, func(ctx context.Context, i int) error {
			node := k.cluster.nodeObject(i)
			return k.clients.CreateNode(ctx, &node)
		}),
		createAll(ctx, k.initial, func(ctx context.Context, i int) error {
			_, err := k.write(ctx, CEP, i, k.cluster.endpointObject(i))
			return err
		}),
		k.eachSlice(func(name, namespace string, endpoints []wire.Endpoint) error {
			slice, err := k.clients.CreateSlice(ctx, name, namespace, endpoints)
			k.slices[name] = &sliceWriter{slice: slice, content: endpoints}
			return err
		}),
	)
}

// sliceOf is the slice of the i-th endpoint: they are dealt out to those of
// their namespace.
func (k *kubernetes) sliceOf(i int) (name, namespace string) {
	namespace = k.cluster.workload(i % k.cluster.mesh.Identities).namespace
	return fmt.Sprintf("ces-%s-%d", namespace, i/k.cluster.mesh.Identities%k.perName), namespace
}

// eachSlice gives fn every slice with its initial endpoints, of which there may
// be none.
func (k *kubernetes) eachSlice(fn func(name, namespace string, endpoints []wire.Endpoint) error) error {
	in, content := map[string]string{}, map[string][]wire.Endpoint{}
	for i := range k.cluster.mesh.Endpoints {
		name, namespace := k.sliceOf(i)
		in[name] = namespace
		if i < k.initial {
			content[name] = append(content[name], k.cluster.endpointObject(i))
		}
	}
	for name, namespace := range in {
		if err := fn(name, namespace, content[name]); err != nil {
			return err
		}
	}
	return nil
}

// write adds the i-th endpoint, and returns once the API server has it; wrote is
// false where that was by the write of another one.
func (k *kubernetes) write(ctx context.Context, mode string, i int, e wire.Endpoint) (wrote bool, err error) {
	if mode == CES {
		name, _ := k.sliceOf(i)
		return k.slices[name].edit(ctx, &k.clients, func(content []wire.Endpoint) []wire.Endpoint { return append(content, e) })
	}
	return true, k.clients.CreateEndpoint(ctx, &e, k.cluster.identityLabels(i%k.cluster.mesh.Identities))
}

// reset removes endpoints that were added, so that the next round finds what the
// last one did.
func (k *kubernetes) reset(ctx context.Context, mode string, added []wire.Endpoint) error {
	if mode == CES {
		return k.eachSlice(func(name, _ string, endpoints []wire.Endpoint) error {
			s := k.slices[name]
			s.content = endpoints
			return k.clients.UpdateSlice(ctx, s.slice, endpoints)
		})
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(creationsAtOnce)
	for _, e := range added {
		all.Go(func() error { return k.clients.DeleteEndpoint(ctx, &e) })
	}
	return all.Wait()
}

// sliceWriter changes the endpoints of one slice. As with upstream's operator,
// one write is under way at a time, and the next one has all that came meanwhile.
type sliceWriter struct {
	mu      sync.Mutex
	content []wire.Endpoint
	edits   int // of content

	writing sync.Mutex
	slice   *apiserver.Slice
	// written is how many of the edits the API server has.
	written int
}

// edit changes the endpoints, and returns once the API server has the change;
// wrote is false where that was by the write of another one. change may modify
// the slice that it is given.
func (s *sliceWriter) edit(ctx context.Context, clients *apiserver.Clients, change func([]wire.Endpoint) []wire.Endpoint) (wrote bool, err error) {
	s.mu.Lock()
	s.content = change(s.content)
	s.edits++
	position := s.edits
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.written >= position {
		return false, nil
	}
	s.mu.Lock()
	content, edits := slices.Clone(s.content), s.edits
	s.mu.Unlock()
	if err := clients.UpdateSlice(ctx, s.slice, content); err != nil {
		return false, err
	}
	s.written = edits
	return true, nil
}

// expected is what belongs into the exporter's etcd once these endpoints were
// added, by prefix.
func (k *kubernetes) expected(added []wire.Endpoint) (map[string]digest, error) {
	out := map[string]digest{}
	of := func(r wire.Resource) string { return wire.StatePrefix(r, k.cluster.Name) }
	for r, n := range map[wire.Resource]int{wire.Identities: k.cluster.mesh.Identities, wire.Nodes: k.cluster.mesh.Nodes, wire.Endpoints: k.initial} {
		var d digest
		i := 0
		err := k.cluster.Entries(r, func(key string, value []byte) error {
			if i++; i <= n {
				d.add(key, value)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		out[of(r)] = d
	}
	endpoints := out[of(wire.Endpoints)]
	for i := range added {
		value, err := wire.MarshalEndpoint(&added[i])
		if err != nil {
			return nil, err
		}
		endpoints.add(wire.EndpointKey(added[i].Prefix), value)
	}
	out[of(wire.Endpoints)] = endpoints
	return out, nil
}
