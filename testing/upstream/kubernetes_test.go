// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// TestKubernetes follows objects from a real API server of the cluster north
// into the BPF map of an agent in the cluster west, by the scripts of
// testdata/kubernetes. All that is between is ours:
//
//	kube-apiserver ─▶ exporter ─▶ etcd ─▶ KVStoreMesh ─▶ etcd ─▶ agent ─▶ BPF map
func TestKubernetes(t *testing.T) {
	requireBPF(t)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	scripttest.Test(t, ctx, kubernetesEngine, nil, "testdata/kubernetes/*.txtar")
}

// requireBPF skips the test where the kernel's maps can't be used.
func requireBPF(t *testing.T) {
	root := bpfRoot(t)
	probe, err := ipcache.OpenBPF(mesh.Log(t), ipcache.BPFConfig{Root: root, Dir: "probe", Capacity: 1})
	if errors.Is(err, unix.EPERM) || errors.Is(err, ipcache.ErrBPFNotPermitted) {
		t.Skipf("no BPF map to write to, which needs CAP_BPF and CAP_SYS_ADMIN: %v", err)
	}
	require.NoError(t, err)
	require.NoError(t, probe.Close())
}

// bpfRoot is a directory for a BPF file system of the test's own, which the first
// to open a map mounts.
func bpfRoot(t testing.TB) string {
	root := t.TempDir()
	t.Cleanup(func() {
		// EINVAL is that nothing was mounted.
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmounting the BPF file system: %v", err)
		}
	})
	return root
}

// kubernetesEngine starts all of the way, and gives the commands of a script.
// args are flags of the exporter.
func kubernetesEngine(t testing.TB, args []string) *script.Engine {
	root := bpfRoot(t)
	server := kubeapi.Start(t)
	connections, err := rest.HTTPClientFor(server.RESTConfig)
	require.NoError(t, err)
	t.Cleanup(connections.CloseIdleConnections)
	objects, err := dynamic.NewForConfigAndClient(server.RESTConfig, connections)
	require.NoError(t, err)

	source, sink := mesh.NewCluster(t, north, northID), mesh.NewCluster(t, west, westID)
	exporter := source.NewExporterFrom(t, exporterFlags(args), mesh.Flags{"k8s-kubeconfig-path": server.Kubeconfig})
	exporter.Start()
	sink.NewKVStoreMesh(t, mesh.NewDirectory(t).Add(north, source.Etcd)).Start()
	end := &ourReader{t: t, agent: sink.NewAgent(t, mesh.NewDirectory(t).Add(north, sink.Etcd),
		mesh.Flags{"ipcache-backend": ipcache.BackendBPF, "bpf-root": root})}
	end.restart()

	cmds := script.DefaultCmds()
	cmds["kube/apply"] = onObjects("Create or change objects", objects, apply)
	cmds["kube/delete"] = onObjects("Delete objects", objects, remove)
	cmds["kube/created"] = createdCommand(objects)
	cmds["apiserver/kill"] = do("Kill the API server", func() { require.NoError(t, server.Kill()) })
	cmds["apiserver/start"] = do("Start the API server again", func() { require.NoError(t, server.Restart(t.Context())) })
	cmds["exporter/start"] = do("Start the exporter", exporter.Start)
	cmds["exporter/stop"] = do("Stop the exporter", exporter.Stop)
	cmds["reader/ready"] = readyCommand(end)
	cmds["reader/content"] = contentCommand(end)
	cmds["reader/gone"] = goneCommand(end)
	cmds["map/content"] = mapCommand(end.agent)
	marks := &marks{agent: end.agent}
	cmds["rows/mark"] = do("Remember the revision of each row", marks.mark)
	cmds["rows/kept"] = marks.keptCommand()
	return &script.Engine{Cmds: cmds}
}

// objectFunc does something with one object.
type objectFunc func(ctx context.Context, client dynamic.ResourceInterface, object *unstructured.Unstructured) error

func apply(ctx context.Context, client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
	_, err := client.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "test", Force: true})
	return err
}

func remove(ctx context.Context, client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
	return client.Delete(ctx, object.GetName(), metav1.DeleteOptions{})
}

// onObjects is a command that does something with the object of each file.
func onObjects(summary string, client dynamic.Interface, do objectFunc) script.Cmd {
	return script.Command(script.CmdUsage{Summary: summary, Args: "file..."},
		func(s *script.State, files ...string) (script.WaitFunc, error) {
			for _, file := range files {
				if err := onObject(s, client, file, do); err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
			}
			return nil, nil
		})
}

func onObject(s *script.State, client dynamic.Interface, file string, do objectFunc) error {
	content, err := os.ReadFile(s.Path(file))
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(content, &object.Object); err != nil {
		return err
	}
	resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
	var of dynamic.ResourceInterface = client.Resource(resource)
	if namespace := object.GetNamespace(); namespace != "" {
		of = client.Resource(resource).Namespace(namespace)
	}
	return do(s.Context(), of, object)
}

// createdCommand puts the time at which an object was created, which is in the
// value of a service export, into what is expected.
func createdCommand(client dynamic.Interface) script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "Replace CREATED by the time at which the API server created an object", Args: "object-file file"},
		func(s *script.State, files ...string) (script.WaitFunc, error) {
			if len(files) != 2 {
				return nil, script.ErrUsage
			}
			return nil, onObject(s, client, files[0], func(ctx context.Context, of dynamic.ResourceInterface, object *unstructured.Unstructured) error {
				created, err := of.Get(ctx, object.GetName(), metav1.GetOptions{})
				if err != nil {
					return err
				}
				content, err := os.ReadFile(s.Path(files[1]))
				if err != nil {
					return err
				}
				stamp := created.GetCreationTimestamp().UTC().Format(time.RFC3339)
				return os.WriteFile(s.Path(files[1]), []byte(strings.ReplaceAll(string(content), "CREATED", stamp)), 0o600)
			})
		})
}

// mapCommand compares all that is in the BPF map.
func mapCommand(agent *mesh.Agent) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Wait until the BPF map has what files say",
			Args:    "[file...]",
			Detail:  []string{"A line is a prefix and its value. Empty lines don't count."},
		},
		func(s *script.State, files ...string) (script.WaitFunc, error) {
			want, err := readLines(s, files)
			if err != nil {
				return nil, err
			}
			return nil, await(s, func() error {
				var have []string
				for entry, err := range agent.Datapath.All() {
					if err != nil {
						return err
					}
					have = append(have, entry.String())
				}
				return compare(want, have)
			})
		})
}

// marks are revisions of an agent's rows. They find a row that has gone and come
// back, however fast: it has another one.
type marks struct {
	agent     *mesh.Agent
	revisions map[string]statedb.Revision
}

func (m *marks) mark() { m.revisions = m.agent.Revisions() }

func (m *marks) keptCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Check that no row was touched since the mark",
			Args:    "[except...]",
			Detail:  []string{"An exception is a table, a colon and a key, such as endpoints:10.1.0.10/32."},
		},
		func(_ *script.State, except ...string) (script.WaitFunc, error) {
			now := m.agent.Revisions()
			var touched []string
			for row, revision := range m.revisions {
				name := strings.Replace(row, " ", ":", 1)
				if now[row] != revision && !slices.Contains(except, name) {
					touched = append(touched, name)
				}
			}
			if len(touched) > 0 {
				return nil, fmt.Errorf("rows were touched: %q", touched)
			}
			return nil, nil
		})
}
