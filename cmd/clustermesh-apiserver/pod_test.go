// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// containerName is what the test's binary is called by to be in a container.
const containerName = "container"

// container is a process with the files that a pod's container has: those of the image,
// and the volumes at their places. It shares the test's network.
type container struct {
	Command []string
	Env     []string
	// Mounts are directories or files of the test by where the container has them.
	Mounts map[string]string
	// Self is the test's binary.
	Self string
}

// enterContainer becomes the container that a file describes. It returns if it can't.
func enterContainer(spec string) error {
	data, err := os.ReadFile(spec)
	if err != nil {
		return err
	}
	var c container
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keeping mounts to ourselves: %w", err)
	}
	// What the image has at these places, and nothing else.
	for _, dir := range []string{"/usr/bin", "/var/lib", "/run"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mounting %q: %w", dir, err)
		}
	}
	if err := os.MkdirAll("/var/run/cilium", 0o755); err != nil {
		return err
	}
	c.Mounts["/usr/bin/etcd"], c.Mounts["/usr/bin/clustermesh-apiserver"] = c.Self, c.Self
	for at, source := range c.Mounts {
		if err := bind(source, at); err != nil {
			return fmt.Errorf("mounting %q at %q: %w", source, at, err)
		}
	}
	return fmt.Errorf("executing %q: %w", c.Command[0], unix.Exec(c.Command[0], c.Command, c.Env))
}

// bind mounts a directory or file at a place that is made for it.
func bind(source, at string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
		var file *os.File
		if file, err = os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o755); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return err
	}
	return unix.Mount(source, at, "", unix.MS_BIND|unix.MS_REC, "")
}

// pod has what its containers share.
type pod struct {
	t         *testing.T
	dir       string
	manifests *manifests
	spec      corev1.PodSpec
	uid       string
	volumes   map[string]string // directories, by their names
	files     map[string]string // what every container has besides, by its place
	env       []string
}

// command is a container's process, not started.
func (p *pod) command(c corev1.Container) *exec.Cmd {
	p.t.Helper()
	env := append([]string(nil), p.env...)
	values := map[string]string{}
	for _, variable := range c.Env {
		value, set := variable.Value, true
		if from := variable.ValueFrom; from != nil {
			switch {
			case from.ConfigMapKeyRef != nil:
				value, set = p.manifests.configMaps[from.ConfigMapKeyRef.Name].Data[from.ConfigMapKeyRef.Key]
			case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.uid":
				value = p.uid
			default:
				p.t.Fatalf("the variable %s has its value from somewhere unknown", variable.Name)
			}
		}
		if set {
			values[variable.Name] = value
			env = append(env, variable.Name+"="+value)
		}
	}
	command := []string{}
	for _, arg := range append(append([]string(nil), c.Command...), c.Args...) {
		command = append(command, reference.ReplaceAllStringFunc(arg, func(ref string) string {
			value, ok := values[ref[2:len(ref)-1]]
			if !ok {
				return ref
			}
			return value
		}))
	}
	mounts := map[string]string{}
	for at, source := range p.files {
		mounts[at] = source
	}
	for _, mount := range c.VolumeMounts {
		mounts[mount.MountPath] = p.volumes[mount.Name]
		require.NotEmpty(p.t, p.volumes[mount.Name], "no volume %q", mount.Name)
	}
	return p.process(c.Name, container{Command: command, Env: env, Mounts: mounts})
}

var reference = regexp.MustCompile(`\$\([A-Z_]+\)`)

func (p *pod) process(name string, c container) *exec.Cmd {
	p.t.Helper()
	self, err := os.Executable()
	require.NoError(p.t, err)
	c.Self = self
	data, err := json.Marshal(c)
	require.NoError(p.t, err)
	spec, err := os.CreateTemp(p.dir, name+"-*.json")
	require.NoError(p.t, err)
	_, err = spec.Write(data)
	require.NoError(p.t, errors.Join(err, spec.Close()))
	cmd := exec.Command(self)
	cmd.Args = []string{containerName, spec.Name()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a container to its end, and gives what it prints.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", output)
	return string(output)
}

// start starts a container, whose log the test shows if it fails, until the test's end.
func (p *pod) start(name string, cmd *exec.Cmd) {
	t := p.t
	t.Helper()
	log, err := os.Create(filepath.Join(p.dir, name+".log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // however it ends
		kill.Stop()
		if content, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			lines := strings.Split(string(content), "\n")
			t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		log.Close()
	})
}
