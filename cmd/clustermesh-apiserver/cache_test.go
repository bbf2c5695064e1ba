// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// TestInClusterCache runs the command that upstream's program hasn't got, as a container
// of its own pod, at a real API server.
func TestInClusterCache(t *testing.T) {
	api := kubeapi.Start(t)
	createEndpoint(t, api)
	p := &pod{t: t, dir: t.TempDir(), volumes: map[string]string{}, files: map[string]string{}}
	p.join(api)
	c := corev1.Container{
		Name: "incluster-cache", Command: []string{"/usr/bin/clustermesh-apiserver"},
		Args: []string{"incluster-cache", "--cluster-name=west", "--cluster-id=2", "--listen-client-urls=http://127.0.0.1:2379",
			"--health-port=9880", "--prometheus-serve-addr=127.0.0.1:9962"},
	}
	running := p.command(c)
	p.start(c.Name, running)
	require.Eventually(t, func() bool { return status("http://127.0.0.1:9880/readyz") == http.StatusOK }, patience, 50*time.Millisecond)

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://127.0.0.1:2379"}})
	require.NoError(t, err)
	defer client.Close()
	keys, err := client.Get(t.Context(), wire.StatePrefix(wire.Endpoints, "west"), clientv3.WithPrefix())
	require.NoError(t, err)
	require.Len(t, keys.Kvs, 1)
	require.Equal(t, wire.StatePrefix(wire.Endpoints, "west")+"10.2.0.10", string(keys.Kvs[0].Key))
	checkShell(t, c, p, running, "readyz")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Regexp(c, `(?m)^waggle_incluster_cache_keys\{resource="endpoints"\} 1$`, scrape(t, "http://127.0.0.1:9962/metrics"))
	}, patience, 50*time.Millisecond)
}
