// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/waggle-mesh/waggle/bench/apiserver"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	namespace = "shop"
	// What stays, all the time and in all scenes.
	stayingNodes      = 3
	stayingIdentities = 10
	stayingPods       = 60
	stayingServices   = 5
	// interval is the pause between two changes.
	interval = 10 * time.Millisecond
)

// load changes the cluster. Of what stays it changes what is said of it: a pod's
// identity, a service's backends. The rest comes and goes.
type load struct {
	clients *apiserver.Clients
	random  *rand.Rand
	keys    []string // of what stays, as mesh.Follower names rows

	mu   sync.Mutex
	next int
	// These come and go. Whether a change was made while the API server was being
	// killed isn't known: what may exist is listed here.
	pods     []wire.Endpoint
	services []string
	ids      []int
}

func newLoad(t *testing.T, clients *apiserver.Clients) *load {
	l := &load{clients: clients, random: rand.New(rand.NewPCG(1, 2))}
	ctx := t.Context()
	require.NoError(t, clients.CreateNamespace(ctx, namespace))
	for i := range stayingNodes {
		node := &wire.Node{Name: fmt.Sprintf("node-%d", i), Cluster: "default",
			Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: nodeIP(i)}},
			PodCIDRs4: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}}
		require.NoError(t, clients.CreateNode(ctx, node))
		l.keys = append(l.keys, "nodes default/"+node.Name)
	}
	for i := range stayingIdentities {
		require.NoError(t, clients.CreateIdentity(ctx, strconv.Itoa(identityOf(i)), labelsOf(i)))
		l.keys = append(l.keys, "identities "+strconv.Itoa(identityOf(i)))
	}
	for i := range stayingPods {
		pod := l.pod()
		pod.Pod = "stays-" + pod.Pod
		require.NoError(t, clients.CreateEndpoint(ctx, &pod, labelsOf(i%stayingIdentities)))
		l.keys = append(l.keys, "endpoints "+pod.Prefix.String())
	}
	for i := range stayingServices {
		name := fmt.Sprintf("stays-%d", i)
		require.NoError(t, clients.CreateService(ctx, namespace, name))
		require.NoError(t, clients.CreateBackends(ctx, namespace, name, []netip.Addr{podIP(i)}))
		l.keys = append(l.keys, "services default/"+namespace+"/"+name)
	}
	return l
}

func nodeIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 18, 0, byte(i + 2)}) }

func podIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i % 3), byte(i >> 8), byte(i)}) }

func identityOf(i int) int { return 1000 + i }

func labelsOf(i int) map[string]string {
	return map[string]string{
		"k8s:app": fmt.Sprintf("app-%d", i), "k8s:" + wire.LabelCluster: "default", "k8s:" + wire.LabelNamespace: namespace,
	}
}

// stays has the rows that must be there all the time.
func (l *load) stays() []string { return l.keys }

// pod makes a new pod with an address that no other has had.
func (l *load) pod() wire.Endpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.next
	l.next++
	return wire.Endpoint{
		Prefix: netip.PrefixFrom(podIP(i), 32), HostIP: nodeIP(i % stayingNodes), Namespace: namespace,
		Pod: fmt.Sprintf("pod-%d", i), Identity: uint32(identityOf(i % stayingIdentities)), ServiceAccount: "default",
	}
}

// addPod creates a pod now, which doesn't go before giveUp.
func (l *load) addPod(t testing.TB) wire.Endpoint {
	t.Helper()
	pod := l.pod()
	require.NoError(t, l.clients.CreateEndpoint(t.Context(), &pod, nil))
	return pod
}

// giveUp lets a pod of addPod come and go as others do.
func (l *load) giveUp(pod wire.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods = append(l.pods, pod)
}

// run changes something all the time, until stop is called or the test ends.
func (l *load) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if err := l.change(ctx); err != nil && ctx.Err() == nil && !expected(err) {
				t.Errorf("changing the cluster: %v", err)
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

// expected errors are those of an API server that is away, and of objects that a
// request which failed has made, or not.
func expected(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) ||
		apierrors.ReasonForError(err) == "" || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) || apierrors.IsTooManyRequests(err)
}

// change makes one change.
func (l *load) change(ctx context.Context) error {
	switch n := l.random.IntN(10); {
	case n < 3:
		pod := l.pod()
		l.mu.Lock()
		l.pods = append(l.pods, pod)
		l.mu.Unlock()
		return l.clients.CreateEndpoint(ctx, &pod, nil)
	case n < 6:
		pod, ok := l.take()
		if !ok {
			return nil
		}
		return l.clients.DeleteEndpoint(ctx, &pod)
	case n < 8:
		i := l.random.IntN(stayingPods)
		identity := l.random.IntN(stayingIdentities)
		pod := &wire.Endpoint{Namespace: namespace, Pod: fmt.Sprintf("stays-pod-%d", i), Identity: uint32(identityOf(identity))}
		return l.clients.ChangeEndpointIdentity(ctx, pod, labelsOf(identity))
	case n < 9:
		return l.clients.ChangeBackends(ctx, namespace, fmt.Sprintf("stays-%d", l.random.IntN(stayingServices)),
			[]netip.Addr{podIP(l.random.IntN(100)), podIP(l.random.IntN(100))})
	default:
		return l.changeOther(ctx)
	}
}

// changeOther has services and identities come and go.
func (l *load) changeOther(ctx context.Context) error {
	l.mu.Lock()
	i := l.next
	l.next++
	var service string
	if len(l.services) > 5 {
		service, l.services = l.services[0], l.services[1:]
	}
	identity := 0
	if len(l.ids) > 5 {
		identity, l.ids = l.ids[0], l.ids[1:]
	}
	added := fmt.Sprintf("comes-%d", i)
	l.services, l.ids = append(l.services, added), append(l.ids, 5000+i%1000)
	l.mu.Unlock()
	if service != "" {
		if err := l.clients.DeleteService(ctx, namespace, service); err != nil {
			return err
		}
	}
	if identity != 0 {
		if err := l.clients.DeleteIdentity(ctx, strconv.Itoa(identity)); err != nil {
			return err
		}
	}
	if err := l.clients.CreateService(ctx, namespace, added); err != nil {
		return err
	}
	return l.clients.CreateIdentity(ctx, strconv.Itoa(5000+i%1000), labelsOf(i))
}

// take gives a pod that comes and goes, and forgets it.
func (l *load) take() (pod wire.Endpoint, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pods) == 0 {
		return pod, false
	}
	i := l.random.IntN(len(l.pods))
	pod = l.pods[i]
	l.pods = slices.Delete(l.pods, i, i+1)
	return pod, true
}
