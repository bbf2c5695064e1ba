// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/waggle-mesh/waggle/bench/apiserver"
	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// podsPerIdentity is how many pods share an identity, on the average, and
	// podsPerService how many a service has.
	podsPerIdentity, podsPerService = 50, 50
	// jobShare: one pod in so many is alone with its identity, as that of a job with
	// a label of its own is. The identity comes and goes with it.
	jobShare = 50
	// backendsPerService is how many backends a service has: those of its pods that
	// its EndpointSlice names.
	backendsPerService = 10
	// fewestServices keeps the changes of one service apart in the smallest cluster.
	fewestServices = 10
)

// world is one cluster in an API server, and how it changes: the same one in each
// run, to the order of its changes. It isn't safe for concurrent use, but the
// writes that it gives out are.
//
// Of 20 changes of pods 9 are new pods, 9 remove the oldest pod, and 2 give a pod
// that stays another identity, as a changed label does. One new pod in jobShare
// brings an identity, and one that goes takes it away. Of 10 changes of services 8
// replace one backend in an EndpointSlice, one is a new service, and one removes
// the oldest.
type world struct {
	cluster Cluster
	clients *apiserver.Clients
	slices  map[string]*sliceWriter // nil where endpoints are CiliumEndpoints
	book    *book

	// pods are the identities of pods by number; of these pods the first so many
	// were removed.
	pods       []uint32
	podsGone   int
	podChanges int

	// services are the versions of services by number.
	services       []int
	servicesGone   int
	serviceChanges int

	// last is the write of an object that was given out last: the next one of the
	// same object waits for it.
	last map[follower.Object]<-chan struct{}
}

// newWorld is the world of so many pods, and of so many more that it has room for.
func newWorld(pods, nodes, room int, seed uint64, endpointSlices bool) *world {
	mesh := Mesh{Clusters: 1, Endpoints: pods + room, Nodes: nodes, Identities: max(2, pods/podsPerIdentity), Seed: seed}
	w := &world{
		cluster: Cluster{Name: wire.DefaultClusterInfo.Name, ID: wire.DefaultClusterInfo.ID, mesh: mesh},
		book:    newBook(), last: map[follower.Object]<-chan struct{}{},
	}
	for i := range pods {
		w.pods = append(w.pods, w.firstIdentity(i))
	}
	w.services = make([]int, max(fewestServices, pods/podsPerService))
	if endpointSlices {
		w.slices = map[string]*sliceWriter{}
	}
	return w
}

// podChangesWithin is how many pods so many changes may add.
func podChangesWithin(changes int) int { return changes/2 + 1 }

// alone says whether a pod has an identity of its own.
func alone(pod int) bool { return pod%jobShare == jobShare-1 }

// firstIdentity is the identity that a pod begins with.
func (w *world) firstIdentity(pod int) uint32 {
	if alone(pod) {
		return w.cluster.workload(w.cluster.mesh.Identities + pod/jobShare).identity
	}
	return w.cluster.workload(pod % w.cluster.mesh.Identities).identity
}

// otherIdentity is one that a pod has after its labels were changed: of another
// workload of the same namespace, if there is one.
func (w *world) otherIdentity(pod int) uint32 {
	now, all := pod%w.cluster.mesh.Identities, w.cluster.mesh.Identities
	other := now + len(namespaces)
	if other >= all {
		other = now % len(namespaces)
	}
	if other == now {
		other = (now + 1) % all
	}
	return w.cluster.workload(other).identity
}

// endpoint is a pod as it is now.
func (w *world) endpoint(pod int) wire.Endpoint {
	e := w.cluster.endpointObject(pod)
	e.Identity = w.pods[pod]
	return e
}

// labelsOf are those of an identity.
func (w *world) labelsOf(identity uint32) map[string]string {
	number := int(identity - w.cluster.workload(0).identity)
	if number < w.cluster.mesh.Identities {
		return w.cluster.identityLabels(number)
	}
	pod := (number-w.cluster.mesh.Identities)*jobShare + jobShare - 1
	labels := w.cluster.identityLabels(pod % w.cluster.mesh.Identities)
	labels["k8s:batch.kubernetes.io/job-name"] = w.cluster.endpointObject(pod).Pod
	return labels
}

// service is the name of a service.
func (w *world) service(i int) (namespace, name string) {
	load := w.cluster.workload(i % w.cluster.mesh.Identities)
	return load.namespace, fmt.Sprintf("%s-%d", load.name, i)
}

// backends are those of a service as it is now: with each version one is replaced.
func (w *world) backends(i int) []netip.Addr {
	out := make([]netip.Addr, min(backendsPerService, w.cluster.mesh.Endpoints))
	for n := range out {
		out[n], _ = w.cluster.endpoint((i*backendsPerService + w.services[i] + n) % w.cluster.mesh.Endpoints)
	}
	return out
}

// fill writes the world as it is at the start.
func (w *world) fill(ctx context.Context) error {
	spaces := map[string]struct{}{}
	identities := map[uint32]struct{}{}
	for i := range w.cluster.mesh.Identities {
		load := w.cluster.workload(i)
		spaces[load.namespace], identities[load.identity] = struct{}{}, struct{}{}
	}
	for _, identity := range w.pods {
		identities[identity] = struct{}{}
	}
	for name := range spaces {
		if err := w.clients.CreateNamespace(ctx, name); err != nil {
			return err
		}
	}
	ids := make([]uint32, 0, len(identities))
	for id := range identities {
		w.book.have(follower.IdentityObject(id), follower.IdentityMark(id))
		ids = append(ids, id)
	}
	for i := range w.cluster.mesh.Nodes {
		name := w.cluster.nodeObject(i).Name
		w.book.have(follower.NodeObject(name), follower.NodeMark(name))
	}
	content := map[string][]wire.Endpoint{}
	for i := range w.pods {
		e := w.endpoint(i)
		w.book.have(follower.EndpointObject(e.Namespace, e.Pod), follower.EndpointMark(e.Namespace, e.Pod, e.Identity))
		name, _ := w.sliceOf(i)
		content[name] = append(content[name], e)
	}
	for i := range w.services {
		namespace, name := w.service(i)
		w.book.have(follower.ServiceObject(namespace, name), follower.ServiceMark(namespace, name, w.backends(i)))
	}
	return errors.Join(
		createAll(ctx, len(ids), func(ctx context.Context, i int) error { return w.createIdentity(ctx, ids[i]) }),
		createAll(ctx, w.cluster.mesh.Nodes, func(ctx context.Context, i int) error {
			node := w.cluster.nodeObject(i)
			return w.clients.CreateNode(ctx, &node)
		}),
		w.fillEndpoints(ctx, content),
		createAll(ctx, len(w.services), w.createService),
	)
}

func (w *world) fillEndpoints(ctx context.Context, content map[string][]wire.Endpoint) error {
	if w.slices == nil {
		return createAll(ctx, len(w.pods), func(ctx context.Context, i int) error {
			e := w.endpoint(i)
			return w.clients.CreateEndpoint(ctx, &e, w.labelsOf(e.Identity))
		})
	}
	for i := range w.cluster.mesh.Endpoints {
		name, namespace := w.sliceOf(i)
		if w.slices[name] != nil {
			continue
		}
		slice, err := w.clients.CreateSlice(ctx, name, namespace, content[name])
		if err != nil {
			return err
		}
		w.slices[name] = &sliceWriter{slice: slice, content: content[name]}
	}
	return nil
}

// sliceOf is the CiliumEndpointSlice of a pod: each namespace's are filled one
// after the other.
func (w *world) sliceOf(pod int) (name, namespace string) {
	namespace = w.cluster.workload(pod % w.cluster.mesh.Identities).namespace
	return fmt.Sprintf("ces-%s-%d", namespace, pod/(sliceSize*min(len(namespaces), w.cluster.mesh.Identities))), namespace
}

func (w *world) createIdentity(ctx context.Context, id uint32) error {
	return w.clients.CreateIdentity(ctx, wire.IdentityKey(id), w.labelsOf(id))
}

func (w *world) createService(ctx context.Context, i int) error {
	namespace, name := w.service(i)
	return w.makeService(ctx, namespace, name, w.backends(i))
}

// makeService has the backends there first, so that there is one row of the
// service, whoever joins the two.
func (w *world) makeService(ctx context.Context, namespace, name string, backends []netip.Addr) error {
	if err := w.clients.CreateBackends(ctx, namespace, name, backends); err != nil {
		return err
	}
	return w.clients.CreateService(ctx, namespace, name)
}

// write is one write that was given out. It is to be made once, from any
// goroutine, and waits for the one of the same object before it.
type write func(ctx context.Context) error

// changePod gives out the next change of a pod.
func (w *world) changePod() write {
	n := w.podChanges
	w.podChanges++
	switch n %= 20; {
	case n >= 18:
		// Half way between the oldest pods and the newest, and never the same twice.
		pod := w.podsGone + (len(w.pods)-w.podsGone)/2 + (n-18)*2
		if alone(pod) {
			pod++
		}
		return w.relabel(pod)
	case n%2 == 0:
		w.pods = append(w.pods, w.firstIdentity(len(w.pods)))
		return w.createPod(len(w.pods) - 1)
	default:
		w.podsGone++
		return w.deletePod(w.podsGone - 1)
	}
}

func (w *world) createPod(pod int) write {
	e := w.endpoint(pod)
	labels := w.labelsOf(e.Identity)
	object := follower.EndpointObject(e.Namespace, e.Pod)
	create := w.give(object, follower.EndpointMark(e.Namespace, e.Pod, e.Identity), func(ctx context.Context) error {
		return w.editEndpoint(ctx, pod, e, func() error { return w.clients.CreateEndpoint(ctx, &e, labels) })
	})
	if !alone(pod) {
		return create
	}
	identity := w.give(follower.IdentityObject(e.Identity), follower.IdentityMark(e.Identity),
		func(ctx context.Context) error { return w.createIdentity(ctx, e.Identity) })
	return oneAfterTheOther(identity, create)
}

func (w *world) deletePod(pod int) write {
	e := w.endpoint(pod)
	object := follower.EndpointObject(e.Namespace, e.Pod)
	remove := w.give(object, object.Gone(), func(ctx context.Context) error {
		return w.editEndpoint(ctx, pod, wire.Endpoint{}, func() error { return w.clients.DeleteEndpoint(ctx, &e) })
	})
	if !alone(pod) {
		return remove
	}
	unused := follower.IdentityObject(e.Identity)
	return oneAfterTheOther(remove, w.give(unused, unused.Gone(),
		func(ctx context.Context) error { return w.clients.DeleteIdentity(ctx, wire.IdentityKey(e.Identity)) }))
}

func (w *world) relabel(pod int) write {
	w.pods[pod] = w.otherIdentity(pod)
	e := w.endpoint(pod)
	labels := w.labelsOf(e.Identity)
	return w.give(follower.EndpointObject(e.Namespace, e.Pod), follower.EndpointMark(e.Namespace, e.Pod, e.Identity),
		func(ctx context.Context) error {
			return w.editEndpoint(ctx, pod, e, func() error { return w.clients.ChangeEndpointIdentity(ctx, &e, labels) })
		})
}

// editEndpoint makes a pod's endpoint what it is to be: by one where there are
// CiliumEndpoints, else in its slice, where the zero Endpoint is one that goes.
func (w *world) editEndpoint(ctx context.Context, pod int, e wire.Endpoint, one func() error) error {
	if w.slices == nil {
		return one()
	}
	name, _ := w.sliceOf(pod)
	prefix := w.cluster.endpointObject(pod).Prefix
	_, err := w.slices[name].edit(ctx, w.clients, func(content []wire.Endpoint) []wire.Endpoint {
		content = slices.DeleteFunc(content, func(other wire.Endpoint) bool { return other.Prefix == prefix })
		if e.Prefix.IsValid() {
			content = append(content, e)
		}
		return content
	})
	return err
}

// changeService gives out the next change of a service.
func (w *world) changeService() write {
	n := w.serviceChanges
	w.serviceChanges++
	switch n % 10 {
	case 4:
		w.services = append(w.services, 0)
		i := len(w.services) - 1
		namespace, name, backends := w.serviceNow(i)
		return w.give(follower.ServiceObject(namespace, name), follower.ServiceMark(namespace, name, backends),
			func(ctx context.Context) error { return w.makeService(ctx, namespace, name, backends) })
	case 9:
		i := w.servicesGone
		w.servicesGone++
		namespace, name := w.service(i)
		object := follower.ServiceObject(namespace, name)
		return w.give(object, object.Gone(), func(ctx context.Context) error {
			return errors.Join(w.clients.DeleteService(ctx, namespace, name), w.clients.DeleteBackends(ctx, namespace, name))
		})
	default:
		// Not the oldest one, which goes next.
		i := w.servicesGone + 1 + n%(len(w.services)-w.servicesGone-1)
		w.services[i]++
		namespace, name, backends := w.serviceNow(i)
		return w.give(follower.ServiceObject(namespace, name), follower.ServiceMark(namespace, name, backends),
			func(ctx context.Context) error { return w.clients.ChangeBackends(ctx, namespace, name, backends) })
	}
}

func (w *world) serviceNow(i int) (namespace, name string, backends []netip.Addr) {
	namespace, name = w.service(i)
	return namespace, name, w.backends(i)
}

// give notes a write that is given out.
func (w *world) give(object follower.Object, mark follower.Mark, put write) write {
	before, done := w.last[object], make(chan struct{})
	w.last[object] = done
	number := w.book.give(object, mark)
	return func(ctx context.Context) error {
		defer close(done)
		if before != nil {
			<-before
		}
		w.book.sent(number)
		if err := put(ctx); err != nil {
			return err
		}
		w.book.accepted(number)
		return nil
	}
}

// oneAfterTheOther makes all of them in turns; those after one that failed as
// well, since others may wait for them.
func oneAfterTheOther(all ...write) write {
	return func(ctx context.Context) error {
		var errs []error
		for _, one := range all {
			errs = append(errs, one(ctx))
		}
		return errors.Join(errs...)
	}
}
