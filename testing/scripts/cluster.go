// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/cilium/pkg/k8s/client"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The kinds of parts that a cluster can have.
const (
	exporter    = "exporter"
	kvstoremesh = "kvstoremesh"
	agent       = "agent"
	cache       = "cache"
)

// cluster is one cluster of a mesh. Its Kubernetes is upstream's fake clientset,
// which outlives the parts that read it.
type cluster struct {
	name string
	id   string // as a flag has it; empty until one was given
	kube *fakeclient.FakeClientset
	// churn is what k8s/churn started; nil if there is none.
	churn *churn
	// dir has a directory of etcd configurations for each part that reads others.
	dir string
}

// configDir is the --clustermesh-config of a part.
func (c *cluster) configDir(kind string) string { return filepath.Join(c.dir, kind) }

// connect writes the etcd configuration by which a part finds another cluster.
func (c *cluster) connect(kind, other, url string) error {
	dir := c.configDir(kind)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("connecting %s to %q: %w", c.name, other, err)
	}
	config := fmt.Sprintf("endpoints:\n- %s\n", url)
	if err := os.WriteFile(filepath.Join(dir, other), []byte(config), 0o644); err != nil {
		return fmt.Errorf("connecting %s to %q: %w", c.name, other, err)
	}
	return nil
}

// disconnect removes that configuration, and says whether there was one.
func (c *cluster) disconnect(kind, other string) (bool, error) {
	err := os.Remove(filepath.Join(c.configDir(kind), other))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// identity are the flags that say which cluster a part is of. An ID among the
// part's own flags is also that of the parts to come.
func (c *cluster) identity(args []string) ([]string, error) {
	for _, arg := range args {
		if id, ok := strings.CutPrefix(arg, "--cluster-id="); ok {
			c.id = id
		}
	}
	if c.id == "" {
		return nil, fmt.Errorf("the ID of cluster %q isn't known yet: give --cluster-id=N", c.name)
	}
	return []string{"--cluster-name=" + c.name, "--cluster-id=" + c.id}, nil
}

// kubernetesClient provides the cluster's Kubernetes to a hive, in the place of
// kubernetes.ClientCell.
func (c *cluster) kubernetesClient() cell.Cell {
	return cell.Group(
		cell.Config(wire.DefaultMCSAPIConfig),
		cell.Provide(func() client.Clientset { return c.kube }),
	)
}

// exporterCells are Kubernetes → etcd.
func (c *cluster) exporterCells() []cell.Cell {
	return []cell.Cell{
		cell.Config(wire.DefaultClusterInfo),
		c.kubernetesClient(),
		cells.ExporterParts,
	}
}

// cacheCells are Kubernetes → etcd, for the cluster's own agents.
func (c *cluster) cacheCells() []cell.Cell {
	return []cell.Cell{
		cell.Config(wire.DefaultClusterInfo),
		c.kubernetesClient(),
		cells.InClusterCacheParts,
	}
}

// cacheEtcd is the etcd of a cluster's cache, unless a script says otherwise.
func cacheEtcd(cluster string) string { return cluster + "-cache" }

// kvstoreMeshCells are other clusters' etcds → etcd.
func (c *cluster) kvstoreMeshCells() []cell.Cell { return []cell.Cell{cells.KVStoreMesh} }

// agentCells are etcd → tables → map. With local, the tables also hold what the
// agent's own cluster has, as they do within cilium-agent.
func (c *cluster) agentCells(local bool) []cell.Cell {
	if local {
		return []cell.Cell{cells.AgentParts, cell.Provide(func() client.Clientset { return c.kube })}
	}
	return []cell.Cell{cells.Agent}
}

// etcdFlag is the flag for where a part's own etcd is.
func etcdFlag(url string) string { return "--kvstore-opt=" + etcd.OptAddress + "=" + url }

// cutFlag takes the flag --name or --name=value out of args.
func cutFlag(args []string, name string) (rest []string, value string, found bool) {
	for i, arg := range args {
		if arg == "--"+name {
			return slices.Delete(slices.Clone(args), i, i+1), "", true
		}
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return slices.Delete(slices.Clone(args), i, i+1), value, true
		}
	}
	return args, "", false
}
