// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package apiserver is what it takes to run the real kube-apiserver beside a
// test or a benchmark, whoever starts its process, and to fill it with Cilium's
// objects.
//
//	server.go       its flags, and when it is ready
//	credentials.go  keys, certificate, admin token, kubeconfig
//	clients.go      typed clients
//	crds.go         the CRDs
//	objects.go      objects of the wire schema as those of Kubernetes
//	changes.go      their changes, and services
//	metrics.go      the metrics of its own that operators know
package apiserver

import (
	"context"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Flags are the flags of a kube-apiserver with these credentials, on the etcd at
// that URL.
func Flags(c Credentials, etcd string) []string {
	return append(c.flags(),
		"--etcd-servers="+etcd,
		"--bind-address="+c.address.Addr().String(),
		"--advertise-address="+c.address.Addr().String(),
		"--secure-port="+strconv.Itoa(int(c.address.Port())),
		// Nobody reads the endpoints of the service "kubernetes", and a
		// loopback address isn't valid in them.
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
		"--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount",
	)
}

// Ready says whether the server serves. The system's namespaces are created in
// the background, and being ready doesn't include them: they are asked for too.
func (c *Clients) Ready(ctx context.Context) bool {
	if _, err := c.Kubernetes.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return false
	}
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault} {
		if _, err := c.Kubernetes.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return false
		}
	}
	return true
}
