// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// barEvery is the time between two drawings of a bar. They are few, since what is
// measured has the same processors.
const barEvery = 500 * time.Millisecond

// bar shows on a terminal how far a benchmark is, and nothing where there is
// none. Its methods but clear are those that a benchmark reports to.
type bar struct {
	container *mpb.Progress // nil where there is no terminal
	bar       *mpb.Bar
	text      atomic.Pointer[string]
}

func newBar(f *os.File) *bar {
	b := &bar{}
	if !term.IsTerminal(int(f.Fd())) {
		return b
	}
	b.container = mpb.New(mpb.WithOutput(f), mpb.WithRefreshRate(barEvery), mpb.WithWidth(30))
	// A total of 0 is one that isn't known yet.
	b.bar = b.container.AddBar(0, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Elapsed(decor.ET_STYLE_MMSS)),
		mpb.AppendDecorators(decor.CountersNoUnit("%d of %d  "), decor.Any(b.now)))
	return b
}

func (b *bar) now(decor.Statistics) string {
	if text := b.text.Load(); text != nil {
		return *text
	}
	return ""
}

// doing says what is being done.
func (b *bar) doing(text string) { b.text.Store(&text) }

// steps says how many steps are done of how many.
func (b *bar) steps(done, of int) {
	if b.bar != nil {
		b.bar.SetTotal(int64(of), false)
		b.bar.SetCurrent(int64(done))
	}
}

// clear takes the bar from the terminal.
func (b *bar) clear() {
	if b.container != nil {
		b.bar.Abort(true)
		b.container.Wait()
	}
}
