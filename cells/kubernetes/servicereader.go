// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/k8s/client"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	slim_clientset "github.com/cilium/cilium/pkg/k8s/slim/k8s/client/clientset/versioned"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
)

// serviceReader is reading.ServiceReader.
type serviceReader struct {
	connect func() ([]slim_clientset.Interface, error)

	mu sync.Mutex
	// clients are those of the API servers; nil until connect has succeeded.
	clients []slim_clientset.Interface
	// first is the one that is asked first: which has answered last.
	first int
}

// newServiceReader uses the hive's clientset where that is on.
func newServiceReader(clientset client.Clientset) reading.ServiceReader {
	if clientset.IsEnabled() {
		return &serviceReader{clients: []slim_clientset.Interface{clientset.Slim()}}
	}
	cfg := clientset.Config()
	return &serviceReader{connect: func() ([]slim_clientset.Interface, error) { return slimClients(cfg) }}
}

// errNotConfigured is why a serviceReader can't ask anybody.
var errNotConfigured = errors.New("no API server is configured: give --k8s-kubeconfig-path or --k8s-api-server-urls, or run in a pod")

// slimClients gives a client for each API server that the flags name, by the same
// rules as upstream's clientset, in random order.
func slimClients(cfg client.Config) ([]slim_clientset.Interface, error) {
	configs, err := restConfigs(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuring a client of Kubernetes: %w", err)
	}
	rand.Shuffle(len(configs), func(i, j int) { configs[i], configs[j] = configs[j], configs[i] })
	clients := make([]slim_clientset.Interface, 0, len(configs))
	for _, rc := range configs {
		rc.UserAgent = "waggle-service-reader"
		rc.ContentType = "application/vnd.kubernetes.protobuf"
		slim, err := slim_clientset.NewForConfig(rc)
		if err != nil {
			return nil, fmt.Errorf("creating a client of Kubernetes at %q: %w", rc.Host, err)
		}
		clients = append(clients, slim)
	}
	return clients, nil
}

// restConfigs are those of the API servers. A kubeconfig comes before addresses, and
// these before what a pod is told. The pod's credentials are for https alone.
func restConfigs(cfg client.Config) ([]*rest.Config, error) {
	if cfg.K8sKubeConfigPath != "" {
		rc, err := clientcmd.BuildConfigFromFlags("", cfg.K8sKubeConfigPath)
		return []*rest.Config{rc}, err
	}
	var hosts []string
	if cfg.K8sAPIServer != "" {
		hosts = []string{withScheme("http", cfg.K8sAPIServer)}
	} else {
		for _, host := range cfg.K8sAPIServerURLs {
			if host != "" {
				hosts = append(hosts, withScheme("https", host))
			}
		}
	}
	if len(hosts) == 0 {
		rc, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			err = errNotConfigured
		}
		return []*rest.Config{rc}, err
	}
	var configs []*rest.Config
	for _, host := range hosts {
		rc := &rest.Config{}
		if strings.HasPrefix(host, "https://") {
			var err error
			if rc, err = rest.InClusterConfig(); err != nil {
				return nil, fmt.Errorf("%q needs a pod's credentials: %w", host, err)
			}
		}
		rc.Host = host
		configs = append(configs, rc)
	}
	return configs, nil
}

// withScheme adds the scheme that upstream's client takes where none is given.
func withScheme(scheme, host string) string {
	if strings.HasPrefix(host, "http://") || strings.HasPrefix(host, "https://") {
		return host
	}
	return scheme + "://" + host
}

// Backends asks for the ready backends of a Service's port, with two requests that
// an API server answers from its memory. None is no error.
//
// Of several API servers each is asked until one answers, beginning with the one that
// did last. What is left of ctx's time is shared among those that weren't asked yet, so
// that one which takes packets and says nothing doesn't keep the others from being asked.
func (r *serviceReader) Backends(ctx context.Context, service reading.ServiceName, port uint16) (reading.ServiceBackends, error) {
	clients, first, err := r.connected()
	if err != nil {
		return reading.ServiceBackends{}, err
	}
	var errs []error
	for i := range clients {
		at := (first + i) % len(clients)
		backends, err := askOne(ctx, clients[at], len(clients)-i, service, port)
		if err == nil {
			r.mu.Lock()
			r.first = at
			r.mu.Unlock()
			return backends, nil
		}
		errs = append(errs, err)
	}
	return reading.ServiceBackends{}, fmt.Errorf("reading the backends of service %s: %w", service, errors.Join(errs...))
}

// connected gives the clients, and which to ask first. A configuration that isn't good
// is read again the next time: a kubeconfig may be mounted late.
func (r *serviceReader) connected() (clients []slim_clientset.Interface, first int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.clients == nil {
		if r.clients, err = r.connect(); err != nil {
			return nil, 0, err
		}
	}
	return r.clients, r.first, nil
}

// askOne asks one API server, of so many that are left.
func askOne(ctx context.Context, slim slim_clientset.Interface, left int, service reading.ServiceName, port uint16) (reading.ServiceBackends, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	return readBackends(ctx, slim, service, port)
}

func readBackends(ctx context.Context, slim slim_clientset.Interface, service reading.ServiceName, port uint16) (reading.ServiceBackends, error) {
	svc, err := slim.CoreV1().Services(service.Namespace).Get(ctx, service.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return reading.ServiceBackends{}, err
	}
	at := slices.IndexFunc(svc.Spec.Ports, func(p slim_corev1.ServicePort) bool { return p.Port == int32(port) })
	if at < 0 {
		return reading.ServiceBackends{}, fmt.Errorf("it has no port %d", port)
	}
	backends := reading.ServiceBackends{PortName: svc.Spec.Ports[at].Name}
	list, err := slim.DiscoveryV1().EndpointSlices(service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: slim_discoveryv1.LabelServiceName + "=" + service.Name, ResourceVersion: "0",
	})
	if err != nil {
		return reading.ServiceBackends{}, err
	}
	for i := range list.Items {
		addReady(&backends, &list.Items[i])
	}
	slices.Sort(backends.Addresses)
	backends.Addresses = slices.Compact(backends.Addresses)
	return backends, nil
}

// addReady takes in the ready addresses of a slice.
func addReady(b *reading.ServiceBackends, slice *slim_discoveryv1.EndpointSlice) {
	if slice.AddressType == slim_discoveryv1.AddressTypeFQDN {
		return
	}
	for _, p := range slice.Ports {
		if p.Port == nil || (p.Name != nil && *p.Name != b.PortName) || (p.Name == nil && b.PortName != "") {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			// As Kubernetes has it, an unknown condition is ready.
			if ready := endpoint.Conditions.Ready; ready != nil && !*ready {
				continue
			}
			for _, address := range endpoint.Addresses {
				b.Addresses = append(b.Addresses, net.JoinHostPort(address, strconv.Itoa(int(*p.Port))))
			}
		}
	}
}
