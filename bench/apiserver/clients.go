// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"net/http"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	ciliumclient "github.com/cilium/cilium/pkg/k8s/client/clientset/versioned"
	extensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	mcsclient "sigs.k8s.io/mcs-api/pkg/client/clientset/versioned"
)

// Clients are the cluster admin's typed clients. They share their connections
// and have no rate limit.
type Clients struct {
	// RESTConfig makes further clients, with connections of their own. Copy it
	// before changing it.
	RESTConfig *rest.Config

	Kubernetes    kubernetes.Interface
	Cilium        ciliumclient.Interface
	MCSAPI        mcsclient.Interface
	APIExtensions extensionsclient.Interface

	http *http.Client
}

// NewClients creates the clients; nothing is connected yet.
func NewClients(kubeconfig string) (Clients, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return Clients{}, err
	}
	config.QPS = -1
	// The server warns of formats in the CRDs' schemas that it doesn't know.
	config.WarningHandler = rest.NoWarnings{}
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return Clients{}, err
	}

	c := Clients{RESTConfig: config, http: httpClient}
	var errs [4]error
	c.Kubernetes, errs[0] = kubernetes.NewForConfigAndClient(config, httpClient)
	c.Cilium, errs[1] = ciliumclient.NewForConfigAndClient(config, httpClient)
	c.MCSAPI, errs[2] = mcsclient.NewForConfigAndClient(config, httpClient)
	c.APIExtensions, errs[3] = extensionsclient.NewForConfigAndClient(config, httpClient)
	return c, errors.Join(errs[:]...)
}

// Close ends the connections that no request uses.
func (c *Clients) Close() {
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
}
