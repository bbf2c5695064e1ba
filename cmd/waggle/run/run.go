// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/lock/lockfile"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/ipcache"
)

// Options of a run.
type Options struct {
	// Mesh is the directory of dumps, RunDir where the run keeps its files.
	Mesh, RunDir string
	// Backend is the agents' --ipcache-backend.
	Backend string
	// OnDemand is the agents' --enable-ondemand-resolution.
	OnDemand bool
	// Once ends the run when everything is synced and proved.
	Once bool
	Out  io.Writer
	// Terminal: progress may be drawn over itself.
	Terminal bool
}

// story is one run as it is told.
type story struct {
	Options
	mesh   *mesh
	status *Status
	began  time.Time

	mu        sync.Mutex // of Out
	restarted chan struct{}
}

// Run runs a mesh until ctx ends.
func Run(ctx context.Context, opts Options) (err error) {
	if err := opts.validate(); err != nil {
		return err
	}
	clusters, err := ReadDumps(opts.Mesh)
	if err != nil {
		return err
	}
	// The processes' arguments and "waggle status" must find it from anywhere.
	if opts.RunDir, err = filepath.Abs(opts.RunDir); err != nil {
		return fmt.Errorf("preparing the run: --run-dir: %w", err)
	}
	unlock, err := claim(opts.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	layout, err := prepare(opts.RunDir, clusters)
	if err != nil {
		return err
	}
	s := &story{Options: opts, began: time.Now(), restarted: make(chan struct{}, 1)}
	s.mesh = newMesh(layout, agentFlags{opts.Backend, opts.OnDemand}, s.ended, s.started)
	if s.status, err = NewStatus(layout); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.status.Close()) }()

	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.mesh.run(ctx) })
	group.Go(func() error {
		defer stop() // the end of the story is the end of the mesh
		return s.tell(ctx)
	})
	err = group.Wait()
	s.say("Stopped all processes.")
	return errors.Join(err, s.mesh.removePins())
}

// validate finds what would otherwise only end one of the processes, over and over.
func (o Options) validate() error {
	if o.RunDir == "" {
		return errors.New("--run-dir is empty: it must be a directory of the run's own")
	}
	switch o.Backend {
	case ipcache.BackendAuto, ipcache.BackendBPF, ipcache.BackendMemory:
		return nil
	}
	return fmt.Errorf("--ipcache-backend=%q: must be auto, bpf or memory", o.Backend)
}

// runMarker is the file by which a directory is known as a run's. Only such a
// directory, or an empty one, is ever emptied.
const runMarker = ".waggle-run"

// claim makes the run's directory anew, for this process alone.
func claim(dir string) (release func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("preparing the run: --run-dir: %w", err)
	}
	lockPath := dir + ".lock"
	lock, err := lockfile.NewLockfile(lockPath)
	if err != nil {
		return nil, fmt.Errorf("preparing the run: --run-dir: %w", err)
	}
	if err := lock.TryLock(true); err != nil {
		return nil, errors.Join(
			fmt.Errorf("a mesh already runs in %q; another one needs its own --run-dir: %w", dir, err), lock.Close())
	}
	unlock := func() error { return errors.Join(lock.Unlock(), lock.Close(), os.Remove(lockPath)) }
	if err := empty(dir); err != nil {
		return nil, errors.Join(err, unlock())
	}
	return func() error { return errors.Join(os.RemoveAll(dir), unlock()) }, nil
}

// empty removes what a run that was killed has left in its directory, and marks
// the directory as a run's. It touches nothing in a directory that isn't.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("preparing the run: --run-dir: %w", err)
	}
	marker := filepath.Join(dir, runMarker)
	if _, err := os.Stat(marker); err != nil && len(entries) > 0 {
		return fmt.Errorf("--run-dir=%q has files that are not of a run, and a run's directory is removed at its end: "+
			"give a new or an empty directory", dir)
	}
	// The marker first and last: whenever a run is killed, it is there.
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return fmt.Errorf("preparing the run: --run-dir: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() != runMarker {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("removing what an earlier run has left: %w", err)
	}
	return nil
}

// tell is the story: up, synced, proved, and then what happens.
func (s *story) tell(ctx context.Context) error {
	layout := s.mesh.layout
	s.say("Starting %d clusters, each with its own etcd, exporter, KVStoreMesh and agent; %s also has an in-cluster cache.",
		len(layout.Clusters), layout.Clusters[0].Cluster.Name)
	for _, place := range layout.Clusters {
		if place.Cluster.NoNamespaces {
			s.say("%s has no Namespaces (kubectl get namespaces -o yaml): only its nodes will be exported, since nothing else is known to be in a global namespace.",
				place.Cluster.Manifests)
		}
	}
	truths := make([]*truth, 0, len(layout.Clusters))
	defer func() {
		for _, t := range truths {
			if err := t.stop(); err != nil {
				s.say("%v", err)
			}
		}
	}()
	for _, place := range layout.Clusters {
		t, err := startTruth(ctx, place)
		if t != nil {
			truths = append(truths, t)
		}
		if err != nil {
			return ignoreStop(ctx, err)
		}
	}
	rows, err := s.settle(ctx)
	if err != nil {
		return ignoreStop(ctx, err)
	}
	s.say("Synced after %.1f s.\n", time.Since(s.began).Seconds())
	if err := s.show(rows); err != nil {
		return err
	}
	if err := s.prove(ctx, truths); err != nil {
		return ignoreStop(ctx, err)
	}
	if err := s.proveCache(ctx, truths[0]); err != nil {
		return ignoreStop(ctx, err)
	}
	s.reportDatapath()
	if s.Once {
		return nil
	}
	s.suggest(truths)

	group, ctx := errgroup.WithContext(ctx)
	for _, t := range truths {
		readers := layout.remotes(t.place)
		if t.place.has(partCache) {
			readers = append(readers, t.place)
		}
		group.Go(func() error {
			return followEdits(ctx, t, readers, func(text string) { s.say("%s", text) })
		})
	}
	group.Go(func() error { return s.followRestarts(ctx) })
	return group.Wait()
}

// settle waits until everything is synced, and shows how far it is.
func (s *story) settle(ctx context.Context) ([]Row, error) {
	last := ""
	for {
		rows := s.status.Rows(ctx)
		own := s.status.Datastores()
		if Settled(rows) && !slices.ContainsFunc(own, func(d Datastore) bool { return !d.Connected || !d.Ready }) {
			s.progress("")
			return rows, nil
		}
		synced, problem := 0, ""
		for _, row := range own {
			problem = row.Problem
		}
		for _, row := range rows {
			if row.Synced && row.Lag == 0 {
				synced++
			}
			problem = row.Problem
		}
		text := fmt.Sprintf("%d of %d pairs of clusters synced", synced, len(rows))
		if problem != "" {
			text += " (" + problem + ")"
		}
		if text != last {
			s.progress(text)
			last = text
		}
		select {
		case <-ctx.Done():
			return rows, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// prove looks a pod of the first cluster up in the last one's map.
func (s *story) prove(ctx context.Context, truths []*truth) error {
	source, target := truths[0], s.mesh.layout.Clusters[len(truths)-1]
	row, ok := source.example(target.Cluster)
	if !ok || len(truths) < 2 {
		s.say("There is no pod to look up: the first cluster has none that is for the last one, or there is only one cluster.")
		return nil
	}
	entry, err := find(ctx, row, target)
	if err != nil {
		return err
	}
	e := row.Endpoint()
	s.say("End to end: pod %s/%s of %s, as %s's map has it:\n  %s\n", e.Namespace, e.Pod,
		source.place.Cluster.Name, target.Cluster.Name, entry.text)
	return nil
}

// proveCache looks the same pod up in the map of its own cluster, which has it from
// the in-cluster cache.
func (s *story) proveCache(ctx context.Context, source *truth) error {
	row, ok := source.example(source.place.Cluster)
	if !ok || !source.place.has(partCache) {
		return nil
	}
	entry, err := find(ctx, row, source.place)
	if err != nil {
		return err
	}
	e := row.Endpoint()
	s.say("From the in-cluster cache: the same pod %s/%s, as %s's own map has it:\n  %s\n", e.Namespace, e.Pod,
		source.place.Cluster.Name, entry.text)
	return nil
}

// find waits until a cluster's map has an endpoint.
func find(ctx context.Context, row *state.Endpoint, target Place) (entry mapEntry, err error) {
	want := wanted{addr: row.Prefix().Addr(), identity: fmt.Sprint(row.Identity())}
	ctx, cancel := context.WithTimeout(ctx, editPatience)
	defer cancel()
	if err := poll(ctx, func() (found bool) {
		entry, _ = lookup(target.Shells[partAgent], want.addr)
		return want.matches(entry)
	}); err != nil {
		return entry, fmt.Errorf("%s's map says %q of %s, and the manifests say identity %s: %w",
			target.Cluster.Name, entry.text, want.addr, want.identity, err)
	}
	return entry, nil
}

// reportDatapath says which map the agents write to.
func (s *story) reportDatapath() {
	for _, line := range health(s.mesh.layout.Clusters[0].Shells[partAgent], "ipcache") {
		if strings.Contains(line, "emory") {
			s.say("The agents' maps are in memory, since BPF is not permitted here or was not asked for: no datapath reads them.\n")
			return
		}
	}
}

// suggest says what to try next.
func (s *story) suggest(truths []*truth) {
	first, last := s.mesh.layout.Clusters[0], s.mesh.layout.Clusters[len(s.mesh.layout.Clusters)-1]
	self := os.Args[0]
	dir := ""
	if s.RunDir != DefaultDir() {
		dir = " --run-dir " + s.RunDir
	}
	edit := first.Cluster.Manifests
	example := ""
	if row, ok := truths[0].example(last.Cluster); ok {
		example = PodName{first.Cluster.Name, row.Namespace(), row.Pod()}.String()
		edit += fmt.Sprintf("  (for instance the address or identity of %s/%s)", row.Endpoint().Namespace, row.Endpoint().Pod)
	}
	s.say(`Try next, in another terminal:
  edit a manifest below %s
  kill a process:      kill -9 %d   (%s's KVStoreMesh; or any other of 'pgrep -fl waggle')
  see the state:       %s status%s
  why a pod is synced: %s filter explain%s %s
  ask a process:       %s shell --shell-sock-path %s db/show endpoints
  look into an etcd:   etcdctl --endpoints %s get --prefix cilium/ --keys-only`, edit, s.mesh.pid(last.Cluster.Name, partKVStoreMesh), last.Cluster.Name, self, dir,
		self, dir, cmp.Or(example, "CLUSTER/NAMESPACE/POD"), self, last.Shells[partAgent], last.Etcd)
	if s.OnDemand {
		s.say(`  what isn't pushed:   %s shell --shell-sock-path %s ondemand/miss ADDRESS  (as if a packet had missed it)
                       %s ondemand list%s`, self, first.Shells[partAgent], self, dir)
	}
	s.say("Edits are reported here. Ctrl-C ends everything.\n")
}

// ended and started are told by the processes.
func (s *story) ended(name string, _ int, reason error) {
	var exit interface{ Sys() any }
	text := reason.Error()
	if errors.As(reason, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			text = "killed by " + status.Signal().String()
		}
	}
	s.say("%s ended (%s); its log is %s. Starting it again.", name, text, filepath.Join(s.RunDir, name+".log"))
}

func (s *story) started(string, int) {
	select {
	case s.restarted <- struct{}{}:
	default:
	}
}

// followRestarts reports when everything is synced again after a process died.
func (s *story) followRestarts(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.restarted:
		}
		began := time.Now()
		if _, err := s.settle(ctx); err != nil {
			return nil // the run ends
		}
		s.say("All clusters are synced again, %.1f s after its start.", time.Since(began).Seconds())
	}
}

func (s *story) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.Out, format+"\n", args...)
}

// progress shows a passing text, on a terminal in one line.
func (s *story) progress(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.Terminal:
		fmt.Fprintf(s.Out, "\r\033[K%s", text)
	case text != "":
		fmt.Fprintln(s.Out, text)
	}
}

func (s *story) show(rows []Row) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := Print(s.Out, rows); err != nil {
		return err
	}
	fmt.Fprint(s.Out, "(lag: keys by which the cluster differs from what the remote's etcd holds)\n\n")
	if err := PrintDatastores(s.Out, s.status.Datastores(), time.Now()); err != nil {
		return err
	}
	fmt.Fprint(s.Out, "(this cluster's agent also has what is its own, from the etcd of its in-cluster cache)\n")
	filters := s.status.Filters()
	if err := filters.Print(s.Out, false, false); err != nil {
		return err
	}
	if filters.remarkable() {
		fmt.Fprintln(s.Out, "(what filters leave out; 'filter explain' says why)")
	}
	fmt.Fprintln(s.Out)
	return nil
}

// ignoreStop makes an error that only says that the run was stopped none.
func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
