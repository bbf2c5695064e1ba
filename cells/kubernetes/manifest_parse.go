// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// objectID names an object, whatever version it is written in.
type objectID struct {
	schema.GroupKind
	namespace string
	name      string
}

// manifest is one object of a file.
type manifest struct {
	id     objectID
	kind   *kind
	object runtime.Object
	// sum is of the object's JSON: a manifest that only moved, or whose
	// comments changed, has the same.
	sum uint64
}

// piece is a part of a file that can be parsed by itself: a document, or one
// item of a List. Only pieces whose text changed are parsed again, so an edit
// costs what it changes, not what the file holds.
type piece struct {
	document int // from 1
	line     int // of its first line, from 1
	text     []byte
	// defaults for items of a typed list, whose items don't name their kind.
	defaults metav1.TypeMeta
}

// badPiece is a piece, or an item in it, that can't be used.
type badPiece struct {
	document, line int
	kind, name     string
	err            error
}

// parsed is what one piece holds.
type parsed struct {
	manifests []manifest
	bad       []badPiece
	// ignored are kinds that nothing reads.
	ignored []schema.GroupVersionKind
}

// parser turns text into manifests. It is pure: the same text gives the same.
type parser struct {
	kinds map[schema.GroupKind]*kind
	// unread are the kinds that another configuration would read.
	unread map[schema.GroupKind]bool
	seed   maphash.Seed
}

func newParser(kinds []*kind) *parser {
	p := &parser{kinds: map[schema.GroupKind]*kind{}, unread: map[schema.GroupKind]bool{}, seed: maphash.MakeSeed()}
	for _, k := range knownKinds {
		p.unread[k.GroupKind()] = true
	}
	for _, k := range kinds {
		p.kinds[k.GroupKind()] = k
	}
	return p
}

func (p *parser) sum(text []byte) uint64 { return maphash.Bytes(p.seed, text) }

// split cuts a file into pieces. No line of JSON looks like those that it cuts
// at, so JSON comes out whole.
func split(content []byte) []piece {
	var pieces []piece
	document, line := 0, 1
	start, startLine := 0, 1
	end := func(until int) {
		text := content[start:until]
		if !blank(text) {
			document++
			pieces = append(pieces, splitList(piece{document: document, line: startLine, text: text})...)
		}
	}
	for offset := 0; offset < len(content); line++ {
		next := nextLine(content, offset)
		if isSeparator(content[offset:next]) {
			end(offset)
			start, startLine = next, line+1
		}
		offset = next
	}
	end(len(content))
	return pieces
}

func nextLine(content []byte, offset int) int {
	if i := bytes.IndexByte(content[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(content)
}

// isSeparator: a line of three dashes, alone or with a comment behind.
func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	rest = bytes.TrimSpace(rest)
	return ok && (len(rest) == 0 || rest[0] == '#')
}

// blank: nothing but white space and comments.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// splitList cuts a document of the form that kubectl prints a List in, with the
// key "items" and the dashes of its items at the start of their lines, into its
// items. Any other document stays whole.
func splitList(whole piece) []piece {
	text := whole.text
	var (
		frame    []byte // what is around the items
		items    []piece
		inItems  bool
		from     int
		fromLine int
	)
	closeItem := func(until int) {
		if fromLine == 0 {
			return
		}
		item := bytes.Clone(text[from:until])
		item[0] = ' ' // the dash: the rest is indented as much already
		items = append(items, piece{document: whole.document, line: fromLine, text: item})
		fromLine = 0
	}
	line := whole.line
	for offset := 0; offset < len(text); line++ {
		next := nextLine(text, offset)
		content := text[offset:next]
		switch {
		case inItems && bytes.HasPrefix(content, []byte("- ")):
			closeItem(offset)
			from, fromLine = offset, line
		case inItems && (content[0] == ' ' || content[0] == '#' || len(bytes.TrimSpace(content)) == 0):
			// More of the item.
		case !inItems && len(items) == 0 && bytes.Equal(bytes.TrimRight(content, " \r\n"), []byte("items:")):
			inItems = true
		default:
			closeItem(offset)
			inItems = false
			frame = append(frame, content...)
		}
		offset = next
	}
	closeItem(len(text))
	if len(items) == 0 {
		return []piece{whole}
	}
	var list metav1.TypeMeta
	if err := yaml.Unmarshal(frame, &list); err != nil || !isList(list.Kind) {
		return []piece{whole}
	}
	for i := range items {
		items[i].defaults = itemDefaults(list)
	}
	return items
}

func isList(kind string) bool { return strings.HasSuffix(kind, "List") }

// itemDefaults is what the items of a list are, unless they say it themselves.
func itemDefaults(list metav1.TypeMeta) metav1.TypeMeta {
	if list.Kind == "List" {
		return metav1.TypeMeta{}
	}
	return metav1.TypeMeta{APIVersion: list.APIVersion, Kind: strings.TrimSuffix(list.Kind, "List")}
}

// header is what every object has, and what a list has.
type header struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		Labels    map[string]string `json:"labels"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// parse gives what a piece holds. One bad item of a list leaves the others.
func (p *parser) parse(piece piece) (out parsed) {
	raw, err := yaml.YAMLToJSON(piece.text)
	if err != nil {
		out.bad = append(out.bad, badPiece{document: piece.document, line: piece.line, err: err})
		return out
	}
	p.parseObject(raw, piece, piece.defaults, &out)
	return out
}

func (p *parser) parseObject(raw []byte, piece piece, defaults metav1.TypeMeta, out *parsed) {
	var head header
	bad := func(err error) {
		out.bad = append(out.bad, badPiece{
			document: piece.document, line: piece.line,
			kind: head.Kind, name: objectName(head.Metadata.Namespace, head.Metadata.Name), err: err,
		})
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		bad(fmt.Errorf("reading kind and name: %w", err))
		return
	}
	if head.Kind == "" {
		head.TypeMeta = defaults
	}
	switch {
	case head.Kind == "" || head.APIVersion == "":
		bad(errors.New("apiVersion or kind is missing"))
		return
	case isList(head.Kind):
		for _, item := range head.Items {
			p.parseObject(item, piece, itemDefaults(head.TypeMeta), out)
		}
		return
	}

	gvk := head.GroupVersionKind()
	kind, ok := p.kinds[gvk.GroupKind()]
	if !ok {
		if !p.unread[gvk.GroupKind()] {
			out.ignored = append(out.ignored, gvk)
		}
		return
	}
	if kind.Version != gvk.Version {
		bad(fmt.Errorf("version %q of the kind isn't read, only %q is", gvk.Version, kind.Version))
		return
	}
	if err := checkName("metadata.name", head.Metadata.Name); err != nil {
		bad(err)
		return
	}
	if !kind.selector.Matches(labels.Set(head.Metadata.Labels)) {
		return
	}

	// Case-sensitive, as the API server reads it.
	object := kind.newObject()
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, object); err != nil {
		bad(fmt.Errorf("decoding: %w", err))
		return
	}
	id := objectID{GroupKind: gvk.GroupKind(), name: head.Metadata.Name}
	if kind.namespaced {
		// Where kubectl would put it.
		id.namespace = cmp.Or(head.Metadata.Namespace, metav1.NamespaceDefault)
		if err := checkName("metadata.namespace", id.namespace); err != nil {
			bad(err)
			return
		}
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		bad(err)
		return
	}
	accessor.SetNamespace(id.namespace)
	out.manifests = append(out.manifests, manifest{id: id, kind: kind, object: object, sum: p.sum(raw)})
}

// checkName refuses what the API server would refuse of any kind: names become
// parts of keys, where a slash would make another key.
func checkName(field, name string) error {
	if name == "" {
		return fmt.Errorf("%s is missing", field)
	}
	if faults := path.IsValidPathSegmentName(name); len(faults) > 0 {
		return fmt.Errorf("%s %q: %s", field, name, strings.Join(faults, ", "))
	}
	return nil
}
