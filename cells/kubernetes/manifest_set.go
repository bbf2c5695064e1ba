// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	errEmptyFile = errors.New("the file is empty; its objects are kept until it is filled or deleted")
	errDuplicate = errors.New("the object is in another place already, which counts")
)

// manifestSet is what all files together say, and the difference that a file
// makes. It does no I/O.
//
// An object may stand in several files, say while it is moved from one to
// another: the first file by name counts, and the next takes over.
type manifestSet struct {
	parser *parser
	kinds  []*kind
	report func(problem, error, ...slog.Attr)
	ignore func(schema.GroupVersionKind)

	files   map[string]*manifestFile
	holders map[objectID][]holder
	// loaded is set once the kinds have their complete list; from then on they
	// get differences.
	loaded bool
}

// manifestFile is what is known of one file.
type manifestFile struct {
	// pieces are by the sum of their text.
	pieces  map[uint64]parsed
	objects map[objectID]manifest
}

// holder is a file that an object stands in.
type holder struct {
	file string
	manifest
}

func newManifestSet(kinds []*kind, report func(problem, error, ...slog.Attr), ignore func(schema.GroupVersionKind)) *manifestSet {
	return &manifestSet{
		parser:  newParser(kinds),
		kinds:   kinds,
		report:  report,
		ignore:  ignore,
		files:   map[string]*manifestFile{},
		holders: map[objectID][]holder{},
	}
}

// load ends the first reading: every kind gets its complete list.
func (s *manifestSet) load() error {
	lists := map[*kind][]any{}
	for _, id := range sorted(slices.Collect(maps.Keys(s.holders))) {
		first := s.holders[id][0]
		lists[first.kind] = append(lists[first.kind], first.object)
	}
	s.loaded = true
	var errs []error
	for _, k := range s.kinds {
		if err := k.store.Replace(lists[k], ""); err != nil {
			errs = append(errs, fmt.Errorf("taking in %s: %w", k.Kind, err))
		}
	}
	return errors.Join(errs...)
}

// update takes in the content of a file. While any piece of it is bad nothing
// is removed on its account: a file that is half written, or has a typing
// error, still holds what it held.
func (s *manifestSet) update(file string, content []byte) error {
	pieces := split(content)
	old, known := s.files[file]
	if !known {
		old = &manifestFile{}
	}
	if len(pieces) == 0 {
		if len(old.objects) > 0 {
			s.report(problemManifest, errEmptyFile, slog.String("file", file))
		}
		return nil
	}

	next := &manifestFile{pieces: make(map[uint64]parsed, len(pieces)), objects: map[objectID]manifest{}}
	whole := true
	for _, piece := range pieces {
		sum := s.parser.sum(piece.text) ^ s.parser.sum([]byte(piece.defaults.String()))
		result, seen := old.pieces[sum]
		if !seen {
			result = s.parser.parse(piece)
			for _, gvk := range result.ignored {
				s.ignore(gvk)
			}
		}
		for _, bad := range result.bad {
			whole = false
			if !seen {
				s.report(problemManifest, bad.err, slog.String("file", file), slog.Int("document", bad.document),
					slog.Int("line", bad.line), slog.String("of-kind", bad.kind), slog.String("object", bad.name))
			}
		}
		next.pieces[sum] = result
		for _, m := range result.manifests {
			if _, twice := next.objects[m.id]; twice {
				if !seen {
					s.reportDuplicate(file, m.id)
				}
				continue
			}
			next.objects[m.id] = m
		}
	}
	if !whole {
		for id, m := range old.objects {
			if _, ok := next.objects[id]; !ok {
				next.objects[id] = m
			}
		}
	}
	s.files[file] = next
	return s.apply(file, old.objects, next.objects)
}

// remove takes in that a file is gone.
func (s *manifestSet) remove(file string) error {
	old, known := s.files[file]
	if !known {
		return nil
	}
	delete(s.files, file)
	return s.apply(file, old.objects, nil)
}

// apply moves the set from what a file held to what it holds. Changes come
// before removals, so that an address that changes hands keeps its row.
func (s *manifestSet) apply(file string, old, next map[objectID]manifest) error {
	var changed, gone []objectID
	for id, m := range next {
		if was, ok := old[id]; !ok || was.sum != m.sum {
			changed = append(changed, id)
		}
	}
	for id := range old {
		if _, ok := next[id]; !ok {
			gone = append(gone, id)
		}
	}
	var errs []error
	for _, id := range sorted(changed) {
		if at := s.holders[id]; len(at) > 0 && !slices.ContainsFunc(at, func(h holder) bool { return h.file == file }) {
			s.reportDuplicate(file, id)
		}
		m := next[id]
		errs = append(errs, s.hold(id, file, &m))
	}
	for _, id := range sorted(gone) {
		errs = append(errs, s.hold(id, file, nil))
	}
	return errors.Join(errs...)
}

// hold sets, or with nil withdraws, what file says of an object, and passes on
// what that changes.
func (s *manifestSet) hold(id objectID, file string, m *manifest) error {
	at := s.holders[id]
	var before, after *manifest
	if len(at) > 0 {
		before = &manifest{}
		*before = at[0].manifest
	}
	at = slices.DeleteFunc(slices.Clone(at), func(h holder) bool { return h.file == file })
	if m != nil {
		at = append(at, holder{file: file, manifest: *m})
		slices.SortFunc(at, func(a, b holder) int { return cmp.Compare(a.file, b.file) })
	}
	if len(at) == 0 {
		delete(s.holders, id)
	} else {
		s.holders[id] = at
		after = &at[0].manifest
	}

	var err error
	switch {
	case !s.loaded:
	case after == nil && before != nil:
		err = before.kind.store.Delete(before.object)
	case after != nil && (before == nil || before.sum != after.sum):
		err = after.kind.store.Add(after.object)
	}
	if err != nil {
		return fmt.Errorf("taking in %s %s: %w", id.Kind, objectName(id.namespace, id.name), err)
	}
	return nil
}

func (s *manifestSet) reportDuplicate(file string, id objectID) {
	s.report(problemManifest, errDuplicate, slog.String("file", file),
		slog.String("of-kind", id.Kind), slog.String("object", objectName(id.namespace, id.name)))
}

// sorted makes the order of events the same in each run; where two objects
// claim one address, the order decides.
func sorted(ids []objectID) []objectID {
	slices.SortFunc(ids, func(a, b objectID) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	return ids
}
