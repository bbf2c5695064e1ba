// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package page makes a report one HTML file that needs no other: text as the
// terminal has it, and plots as SVG.
//
//	page.go  the file
//	plot.go  the plots of lines
//	bars.go  those of bars
package page

import (
	"fmt"
	"html/template"
	"io"
)

// Section is one benchmark's part of a page.
type Section struct {
	Title string
	// Text is the report as a terminal would have it.
	Text    string
	Figures []Figure
}

// Figure is a plot.
type Figure struct {
	// Title says what is shown, and Note how to read it.
	Title, Note string
	// SVG is the plot, as Plot.SVG draws it.
	SVG template.HTML
}

// Write writes the page.
func Write(w io.Writer, title string, sections []Section) error {
	if err := layout.Execute(w, map[string]any{"Title": title, "Sections": sections}); err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	return nil
}

var layout = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{{.Title}}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
pre { background: #f6f6f3; padding: 1em; overflow-x: auto; font-size: 13px; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5em; }
figure { margin: 0; } figcaption { max-width: 34em; } svg { max-width: 100%; height: auto; }
</style>
<h1>{{.Title}}</h1>
{{range .Sections}}<section>
<h2>{{.Title}}</h2>
<div class="figures">
{{range .Figures}}<figure>{{.SVG}}<figcaption><b>{{.Title}}.</b> {{.Note}}</figcaption></figure>
{{end}}</div>
{{with .Text}}<pre>{{.}}</pre>
{{end}}</section>
{{end}}</html>
`))
