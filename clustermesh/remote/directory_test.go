// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// waitLimit bounds the wait for what is certain to happen.
const waitLimit = 30 * time.Second

func config(endpoint string) string { return fmt.Sprintf("endpoints:\n- %s\n", endpoint) }

func write(t *testing.T, content string, path ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(path...), []byte(content), 0o600))
}

// follower is a followed directory.
type follower struct {
	t       *testing.T
	path    string
	changes chan change
}

func followDirectory(t *testing.T, path string) *follower {
	f := &follower{t: t, path: path, changes: make(chan change, 100)}
	d, err := openDirectory(hivetest.Logger(t), path, "home")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	health, _ := cell.NewSimpleHealth()
	var wg sync.WaitGroup
	wg.Go(func() {
		d.follow(ctx, health, func(changes []change) {
			for _, change := range changes {
				f.changes <- change
			}
		})
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		require.NoError(t, d.close())
	})
	return f
}

func (f *follower) next() change {
	f.t.Helper()
	select {
	case change := <-f.changes:
		return change
	case <-time.After(waitLimit):
		f.t.Fatal("no change was seen")
		return change{}
	}
}

func (f *follower) expectGood(cluster string) {
	f.t.Helper()
	change := f.next()
	require.Equal(f.t, cluster, change.cluster)
	require.False(f.t, change.removed)
	require.NoError(f.t, change.file.err)
}

func (f *follower) expectRemoved(cluster string) {
	f.t.Helper()
	change := f.next()
	require.Equal(f.t, cluster, change.cluster)
	require.True(f.t, change.removed)
}

func TestDirectoryFiles(t *testing.T) {
	path := t.TempDir()
	write(t, config("http://red:1"), path, "red")
	write(t, config("http://home:1"), path, "home")
	write(t, config("http://bad:1"), path, "Not_A_Name")
	write(t, "-----BEGIN CERTIFICATE-----", path, "red.crt")
	require.NoError(t, os.Mkdir(filepath.Join(path, "directory"), 0o700))

	f := followDirectory(t, path)
	f.expectGood("red")

	write(t, config("http://blue:1"), path, "blue")
	f.expectGood("blue")
	write(t, config("http://red:2"), path, "red")
	f.expectGood("red")
	require.NoError(t, os.Rename(filepath.Join(path, "red"), filepath.Join(path, "green")))
	f.expectRemoved("red")
	f.expectGood("green")
	require.NoError(t, os.Remove(filepath.Join(path, "blue")))
	f.expectRemoved("blue")

	// What was none of ours all the time has made no change.
	require.Empty(t, f.changes)
}

// TestDirectoryHalfWritten: a configuration that is being written, or was
// written wrongly, doesn't remove its cluster.
func TestDirectoryHalfWritten(t *testing.T) {
	path := t.TempDir()
	write(t, config("http://red:1"), path, "red")
	f := followDirectory(t, path)
	f.expectGood("red")

	write(t, "", path, "red")
	broken := f.next()
	require.False(t, broken.removed)
	require.ErrorIs(t, broken.file.err, errNoEndpoints)
	require.ErrorContains(t, broken.file.err, filepath.Join(path, "red"))

	write(t, config("http://red:1"), path, "red")
	f.expectGood("red")
}

// TestDirectoryMountedSecret swaps the content as kubelet does for a mounted
// Secret: files are links through "..data", which is replaced at once.
func TestDirectoryMountedSecret(t *testing.T) {
	path := t.TempDir()
	publish := func(version string, files map[string]string) {
		require.NoError(t, os.Mkdir(filepath.Join(path, version), 0o700))
		for name, content := range files {
			write(t, content, path, version, name)
		}
		require.NoError(t, os.Symlink(version, filepath.Join(path, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(path, "..data_tmp"), filepath.Join(path, "..data")))
	}
	link := func(name string) {
		require.NoError(t, os.Symlink(filepath.Join("..data", name), filepath.Join(path, name)))
	}
	publish("..1", map[string]string{"red": config("http://red:1"), "blue": config("http://blue:1")})
	link("red")
	link("blue")

	f := followDirectory(t, path)
	f.expectGood("blue")
	f.expectGood("red")

	publish("..2", map[string]string{"red": config("http://red:2"), "blue": config("http://blue:1")})
	require.NoError(t, os.RemoveAll(filepath.Join(path, "..1")))
	f.expectGood("red")

	// Again, since the first swap may have broken the watch.
	publish("..3", map[string]string{"red": config("http://red:3"), "green": config("http://green:1")})
	f.expectRemoved("blue")
	f.expectGood("red")
	link("green")
	f.expectGood("green")
	require.NoError(t, os.Remove(filepath.Join(path, "blue")))
	require.NoError(t, os.RemoveAll(filepath.Join(path, "..2")))

	publish("..4", map[string]string{"green": config("http://green:1")})
	f.expectRemoved("red")
	require.Empty(t, f.changes)
}

// TestDirectoryLinkOutside changes the file that a link outside of the
// directory points to, by writing and by replacing it.
func TestDirectoryLinkOutside(t *testing.T) {
	path, outside := t.TempDir(), t.TempDir()
	target := filepath.Join(outside, "target")
	write(t, config("http://red:1"), target)
	require.NoError(t, os.Symlink(target, filepath.Join(path, "red")))

	f := followDirectory(t, path)
	f.expectGood("red")
	write(t, config("http://red:2"), target)
	f.expectGood("red")
	for port := 3; port < 6; port++ {
		write(t, config(fmt.Sprintf("http://red:%d", port)), outside, "new")
		require.NoError(t, os.Rename(filepath.Join(outside, "new"), target))
		f.expectGood("red")
	}
}

// TestDirectoryReplaced: a directory that is gone for a while removes nothing.
func TestDirectoryReplaced(t *testing.T) {
	parent := t.TempDir()
	path, aside := filepath.Join(parent, "configs"), filepath.Join(parent, "aside")
	require.NoError(t, os.Mkdir(path, 0o700))
	write(t, config("http://red:1"), path, "red")
	f := followDirectory(t, path)
	f.expectGood("red")

	require.NoError(t, os.Rename(path, aside))
	// An event has it looked for; it isn't there.
	write(t, config("http://red:2"), aside, "red")

	require.NoError(t, os.Mkdir(path+".new", 0o700))
	write(t, config("http://red:1"), path+".new", "red")
	write(t, config("http://blue:1"), path+".new", "blue")
	require.NoError(t, os.Rename(path+".new", path))
	f.expectGood("blue")
	require.Empty(t, f.changes)
}

func TestDirectoryMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	_, err := openDirectory(hivetest.Logger(t), path, "home")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, path)
}
