// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// source is where objects are that are in no API server.
type source interface {
	// name is for jobs and errors.
	name() string
	// await waits until a list has all there is.
	await(ctx context.Context) error
	// open begins to follow the objects: its first round has all of them.
	open() (feed, error)
	readTxn() statedb.ReadTxn
}

// feed gives the objects of a source, and then how they change. It has one user.
type feed interface {
	// next gives what changed up to the transaction, and how to wait for more.
	next(txn statedb.ReadTxn) (events []watch.Event, more <-chan struct{})
	// added is closed or sent to by what isn't in a table; nil if there is no such thing.
	added() <-chan struct{}
	close()
}

// served gives one reflector the objects of a source, as an API server would: a list
// and, from where that ended, a watch. It is for one reflector, since it keeps the
// position of the last list only; a watch from any other is expired, and has the
// reflector list anew.
type served struct {
	source source
	jobs   job.Group
	// stop ends what waits when the hive stops; reflectors list with a context that
	// never ends.
	stop context.Context

	mu sync.Mutex
	// parked is the feed of the last list, at revision.
	parked   feed
	revision string
	lists    uint64
}

// list gives all objects, once they are all there.
func (s *served) list(ctx context.Context) ([]runtime.Object, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stop, cancel)()
	if err := s.source.await(ctx); err != nil {
		return nil, "", fmt.Errorf("listing %s: %w", s.source.name(), err)
	}
	feed, err := s.source.open()
	if err != nil {
		return nil, "", fmt.Errorf("listing %s: %w", s.source.name(), err)
	}
	events, _ := feed.next(s.source.readTxn())
	objects := make([]runtime.Object, 0, len(events))
	for _, event := range events {
		if event.Type != watch.Deleted {
			objects = append(objects, event.Object)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked != nil {
		s.parked.close()
	}
	s.lists++
	s.parked, s.revision = feed, strconv.FormatUint(s.lists, 10)
	return objects, s.revision, nil
}

// watch goes on from the last list. What reflectors ask for beside that, such as
// bookmarks or a timeout, they can do without.
func (s *served) watch(opts metav1.ListOptions) (watch.Interface, error) {
	if opts.SendInitialEvents != nil {
		// A reflector then lists and watches, as with an API server that is too old.
		return nil, k8serrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), s.source.name(), nil)
	}
	s.mu.Lock()
	feed := s.parked
	if feed == nil || opts.ResourceVersion != s.revision {
		s.mu.Unlock()
		return nil, k8serrors.NewResourceExpired("the position of the list is no longer known")
	}
	s.parked = nil
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(s.stop)
	w := &watching{source: s.source, feed: feed, revision: opts.ResourceVersion, cancel: cancel, events: make(chan watch.Event)}
	s.jobs.Add(job.OneShot("serve-"+s.source.name(), func(jobCtx context.Context, health cell.Health) error {
		health.OK(fmt.Sprintf("Serving %s from list %s", s.source.name(), opts.ResourceVersion))
		defer context.AfterFunc(jobCtx, cancel)()
		w.run(ctx)
		return nil
	}))
	return w, nil
}

// watching is one watch.
type watching struct {
	source   source
	feed     feed
	revision string
	cancel   context.CancelFunc
	events   chan watch.Event
}

func (w *watching) Stop() { w.cancel() }

func (w *watching) ResultChan() <-chan watch.Event { return w.events }

func (w *watching) run(ctx context.Context) {
	defer close(w.events)
	defer w.cancel()
	defer w.feed.close()
	for {
		events, more := w.feed.next(w.source.readTxn())
		for _, event := range events {
			select {
			case w.events <- event:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-more:
		case <-w.feed.added():
		case <-ctx.Done():
			return
		}
	}
}

// listerWatcher is served to upstream's Resource.
type listerWatcher struct{ *served }

func (l listerWatcher) List(metav1.ListOptions) (runtime.Object, error) {
	objects, revision, err := l.list(l.stop)
	if err != nil {
		return nil, err
	}
	list := &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: revision}, Items: make([]runtime.RawExtension, len(objects))}
	for i, object := range objects {
		list.Items[i].Object = object
	}
	return list, nil
}

func (l listerWatcher) Watch(opts metav1.ListOptions) (watch.Interface, error) { return l.watch(opts) }

// IsWatchListSemanticsUnSupported spares a reflector the first question.
func (l listerWatcher) IsWatchListSemanticsUnSupported() bool { return true }
