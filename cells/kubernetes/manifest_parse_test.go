// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// testKinds are the kinds of one configuration, without stores.
func testKinds() []*kind {
	var kinds []*kind
	for _, k := range []kind{namespaceKind, ciliumIdentityKind, ciliumNodeKind, ciliumEndpointKind} {
		kinds = append(kinds, k.reading(labels.Everything(), nil))
	}
	return kinds
}

// parseAll parses a whole file.
func parseAll(p *parser, content string) (out parsed) {
	for _, piece := range split([]byte(content)) {
		one := p.parse(piece)
		out.manifests = append(out.manifests, one.manifests...)
		out.bad = append(out.bad, one.bad...)
		out.ignored = append(out.ignored, one.ignored...)
	}
	return out
}

func (p parsed) names() []string {
	var out []string
	for _, m := range p.manifests {
		out = append(out, m.id.Kind+" "+objectName(m.id.namespace, m.id.name))
	}
	return out
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name    string
		content string
		want    []string
		bad     []badPiece // without errors
		errs    []string   // what each says
		ignored int
	}{
		{name: "empty"},
		{name: "comments only", content: "# nothing\n---\n# here\n"},
		{
			name: "documents, a comment behind the separator, no newline at the end",
			content: "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n" +
				"--- # second\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n---\n\n---\r\n" +
				"apiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: c}",
			want: []string{"Namespace a", "Namespace b", "Namespace c"},
		},
		{
			name: "a List as kubectl prints it",
			content: `apiVersion: v1
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    name: a
    annotations:
      text: |
        - this is no item
        --- nor is this a document

        kind: of text

- apiVersion: cilium.io/v2
  kind: CiliumEndpoint
  metadata:
    name: web
    namespace: foo
kind: List
metadata:
  resourceVersion: ""
`,
			want: []string{"Namespace a", "CiliumEndpoint foo/web"},
		},
		{
			name:    "a typed list, whose items don't name their kind",
			content: "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: a}\n- metadata:\n    name: b\n",
			want:    []string{"Namespace a", "Namespace b"},
		},
		{
			name:    "a List in the flow style, and indented items",
			content: "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]}\n---\napiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: Namespace\n    metadata: {name: b}\n",
			want:    []string{"Namespace a", "Namespace b"},
		},
		{
			name:    "JSON",
			content: `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}]}`,
			want:    []string{"Namespace a"},
		},
		{
			name:    "a namespaced object without a namespace goes where kubectl puts it",
			content: "apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {name: web}\n",
			want:    []string{"CiliumEndpoint default/web"},
		},
		{
			name:    "a namespace on what has none is dropped",
			content: "apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: n1, namespace: foo}\n",
			want:    []string{"CiliumNode n1"},
		},
		{
			name:    "kinds that nobody reads, and kinds of another mode",
			content: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: cilium.io/v2alpha1\nkind: CiliumEndpointSlice\nmetadata: {name: a}\n",
			ignored: 1,
		},
		{
			name: "a bad document among good ones",
			content: "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n" +
				"apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {name: web, namespace: foo}\nstatus: {id: x}\n---\n" +
				"apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
			want: []string{"Namespace a", "Namespace b"},
			bad:  []badPiece{{document: 2, line: 5, kind: "CiliumEndpoint", name: "foo/web"}},
			errs: []string{"cannot unmarshal string"},
		},
		{
			name:    "a bad item among good ones",
			content: "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: [b]}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: c}\n",
			want:    []string{"Namespace a", "Namespace c"},
			bad:     []badPiece{{document: 1, line: 7, kind: "Namespace"}},
			errs:    []string{"reading kind and name"},
		},
		{
			name:    "syntax",
			content: "apiVersion: v1\nkind: Namespace\nmetadata: {name: a\n---\nkind: [\n",
			bad:     []badPiece{{document: 1, line: 1}, {document: 2, line: 5}},
			errs:    []string{"yaml", "yaml"},
		},
		{
			name: "what every object needs",
			content: "metadata: {name: a}\n---\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\n---\n" +
				"apiVersion: v1\nkind: Namespace\nmetadata: {name: a/b}\n---\napiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {name: a, namespace: ..}\n---\n" +
				"apiVersion: cilium.io/v3\nkind: CiliumNode\nmetadata: {name: a}\n---\njust text\n",
			bad: []badPiece{
				{document: 1, line: 1, name: "a"}, {document: 2, line: 3, kind: "Namespace", name: "a"},
				{document: 3, line: 6, kind: "Namespace"}, {document: 4, line: 9, kind: "Namespace", name: "a/b"},
				{document: 5, line: 13, kind: "CiliumEndpoint", name: "../a"},
				{document: 6, line: 17, kind: "CiliumNode", name: "a"}, {document: 7, line: 21},
			},
			errs: []string{"kind is missing", "apiVersion or kind is missing", "metadata.name is missing", "may not contain '/'",
				"metadata.namespace", `only "v2" is`, "reading kind and name"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parseAll(newParser(testKinds()), tt.content)
			for i := range got.bad {
				if i < len(tt.errs) {
					require.ErrorContains(t, got.bad[i].err, tt.errs[i])
				}
				got.bad[i].err = nil
			}
			require.Equal(t, tt.bad, got.bad)
			require.Equal(t, tt.want, got.names())
			require.Len(t, got.ignored, tt.ignored)
		})
	}
}

// TestSplitListIsParsing: cutting a List into items and parsing those gives
// what parsing the whole gives, for every List in the form that kubectl prints.
func TestSplitListIsParsing(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab-: #\n'\"|>{}[]&*!%@\té")), 0, 30, -1)
	rapid.Check(t, func(t *rapid.T) {
		var items []any
		for i := range rapid.IntRange(1, 5).Draw(t, "items") {
			items = append(items, map[string]any{
				"apiVersion": "v1", "kind": "Namespace",
				"metadata": map[string]any{
					"name":        fmt.Sprint("n", i),
					"annotations": rapid.MapOfN(text, text, 0, 3).Draw(t, "annotations"),
				},
			})
		}
		content, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items})
		require.NoError(t, err)

		pieces := split(content)
		require.Len(t, pieces, len(items))
		p := newParser(testKinds())
		got := parseAll(p, string(content))
		var whole parsed
		raw, err := yaml.YAMLToJSON(content)
		require.NoError(t, err)
		p.parseObject(raw, piece{}, pieces[0].defaults, &whole)
		require.Empty(t, got.bad)
		require.Equal(t, whole.manifests, got.manifests)
	})
}

// FuzzParse: no text makes the parser fail otherwise than by saying what is
// bad, and whatever comes out has a name that can be part of a key.
func FuzzParse(f *testing.F) {
	f.Add("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n")
	f.Add("---\napiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: n}\n---\n- a\n")
	f.Add(`{"apiVersion":"cilium.io/v2","kind":"CiliumNodeList","items":[{"metadata":{"name":"x"}}]}`)
	f.Add("kind: List\nitems:\n- \n-  - a\nitems:\n- b")
	f.Fuzz(func(t *testing.T, content string) {
		out := parseAll(newParser(testKinds()), content)
		for _, m := range out.manifests {
			if m.id.name == "" || strings.Contains(m.id.name, "/") || strings.Contains(m.id.namespace, "/") {
				t.Errorf("name %q in namespace %q", m.id.name, m.id.namespace)
			}
			if _, err := json.Marshal(m.object); err != nil {
				t.Errorf("%v: %v", m.id, err)
			}
		}
		if slices.ContainsFunc(out.bad, func(b badPiece) bool { return b.line < 1 || b.err == nil }) {
			t.Error("a bad piece without a place or a reason")
		}
	})
}
