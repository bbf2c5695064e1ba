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

	"github.com/cilium/cilium/pkg/dial"
	"github.com/cilium/cilium/pkg/k8s/client"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	slim_clientset "github.com/cilium/cilium/pkg/k8s/slim/k8s/client/clientset/versioned"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ServiceName names a Kubernetes Service.
type ServiceName struct{ Namespace, Name string }

// String is namespace/name.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// ParseServiceHost takes the host of a URL for the DNS name of a Service,
// NAME.NAMESPACE.svc with or without the cluster's domain behind it. It is false
// for any other host.
func ParseServiceHost(host string) (ServiceName, bool) {
	if tokens := strings.Split(host, "."); len(tokens) < 3 {
		return ServiceName{}, false // upstream's parser takes "example.com" for one
	}
	name, err := dial.ServiceURLToNamespacedName(host)
	if err != nil || name.Name == "" || name.Namespace == "" {
		return ServiceName{}, false
	}
	return ServiceName{Namespace: name.Namespace, Name: name.Name}, true
}

// ServiceBackends is what stands behind one port of a Service.
type ServiceBackends struct {
	// PortName is the port's name in the Service and its EndpointSlices.
	PortName string
	// Addresses are host:port of those that are ready, sorted.
	Addresses []string
}

// ServiceReader finds the backends of a Service without the datapath's help: it
// asks the API server when it is asked itself, and never watches. It works where the
// hive's clientset is off, and doesn't keep a start from succeeding while the API
// server is away. It is safe for concurrent use.
type ServiceReader struct {
	clients func() ([]slim_clientset.Interface, error)
}

// newServiceReader uses the hive's clientset where that is on.
func newServiceReader(clientset client.Clientset) *ServiceReader {
	if clientset.IsEnabled() {
		return &ServiceReader{clients: func() ([]slim_clientset.Interface, error) {
			return []slim_clientset.Interface{clientset.Slim()}, nil
		}}
	}
	cfg := clientset.Config()
	return &ServiceReader{clients: sync.OnceValues(func() ([]slim_clientset.Interface, error) { return slimClients(cfg) })}
}

// errNotConfigured is why a ServiceReader can't ask anybody.
var errNotConfigured = errors.New("no API server is configured: give --k8s-kubeconfig-path or --k8s-api-server-urls, or run in a pod")

// slimClients gives a client for each API server that the flags name, by the same
// rules as upstream's clientset, in random order.
func slimClients(cfg client.Config) ([]slim_clientset.Interface, error) {
	var (
		rc  *rest.Config
		err error
	)
	if cfg.K8sKubeConfigPath != "" {
		rc, err = clientcmd.BuildConfigFromFlags("", cfg.K8sKubeConfigPath)
	} else if rc, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		err = errNotConfigured
		if len(cfg.K8sAPIServerURLs) > 0 { // in plain text, as for upstream
			rc, err = &rest.Config{}, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("configuring a client of Kubernetes: %w", err)
	}
	hosts := []string{rc.Host}
	if cfg.K8sKubeConfigPath == "" && len(cfg.K8sAPIServerURLs) > 0 {
		hosts = slices.Clone(cfg.K8sAPIServerURLs)
	}
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	var clients []slim_clientset.Interface
	for _, host := range hosts {
		of := rest.CopyConfig(rc)
		of.Host = host
		of.UserAgent = "waggle-service-reader"
		of.ContentType = "application/vnd.kubernetes.protobuf"
		slim, err := slim_clientset.NewForConfig(of)
		if err != nil {
			return nil, fmt.Errorf("creating a client of Kubernetes at %q: %w", host, err)
		}
		clients = append(clients, slim)
	}
	return clients, nil
}

// Backends asks for the ready backends of a Service's port, with two requests that
// an API server answers from its memory. None is no error.
func (r *ServiceReader) Backends(ctx context.Context, service ServiceName, port uint16) (ServiceBackends, error) {
	clients, err := r.clients()
	if err != nil {
		return ServiceBackends{}, err
	}
	var errs []error
	for _, slim := range clients {
		backends, err := readBackends(ctx, slim, service, port)
		if err == nil {
			return backends, nil
		}
		errs = append(errs, err)
	}
	return ServiceBackends{}, fmt.Errorf("reading the backends of service %s: %w", service, errors.Join(errs...))
}

func readBackends(ctx context.Context, slim slim_clientset.Interface, service ServiceName, port uint16) (ServiceBackends, error) {
	svc, err := slim.CoreV1().Services(service.Namespace).Get(ctx, service.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return ServiceBackends{}, err
	}
	at := slices.IndexFunc(svc.Spec.Ports, func(p slim_corev1.ServicePort) bool { return p.Port == int32(port) })
	if at < 0 {
		return ServiceBackends{}, fmt.Errorf("it has no port %d", port)
	}
	backends := ServiceBackends{PortName: svc.Spec.Ports[at].Name}
	list, err := slim.DiscoveryV1().EndpointSlices(service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: slim_discoveryv1.LabelServiceName + "=" + service.Name, ResourceVersion: "0",
	})
	if err != nil {
		return ServiceBackends{}, err
	}
	for i := range list.Items {
		backends.add(&list.Items[i])
	}
	slices.Sort(backends.Addresses)
	backends.Addresses = slices.Compact(backends.Addresses)
	return backends, nil
}

// add takes in the ready addresses of a slice.
func (b *ServiceBackends) add(slice *slim_discoveryv1.EndpointSlice) {
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
