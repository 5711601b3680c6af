package cli

import (
	"fmt"
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/bulkhead-net/bulkhead/api"
)

// progress shows how far a transfer is, on standard error: with a bar per layer on
// a terminal, and otherwise with a line for each thing that begins or ends.
type progress struct {
	out   io.Writer
	quiet bool
	bars  *mpb.Progress // nil without a terminal
	bar   map[string]*mpb.Bar
	phase map[string]string // by layer, what was said last
}

func (a *app) progress(quiet bool) *progress {
	p := &progress{out: a.Stderr, quiet: quiet, bar: map[string]*mpb.Bar{}, phase: map[string]string{}}
	if _, ok := terminal(a.Stderr); ok && !quiet {
		p.bars = mpb.New(mpb.WithOutput(a.Stderr), mpb.WithWidth(64))
	}
	return p
}

// show takes one message.
func (p *progress) show(m api.ImageProgress) {
	switch {
	case p.quiet || m.Done != nil || m.Error != "":
	case m.Layer == "":
		// What concerns the image as a whole needs no bar, and what is there
		// already needs no word.
	case p.bars != nil:
		p.showBar(m)
	case p.phase[m.Layer] != m.Phase:
		p.phase[m.Layer] = m.Phase
		text := fmt.Sprintf("%s: %s", shortID(m.Layer), m.Phase)
		if m.Total > 0 && m.Phase != "done" && m.Phase != "exists" {
			text += " " + size(m.Total)
		}
		fmt.Fprintln(p.out, clean(text))
	}
}

func (p *progress) showBar(m api.ImageProgress) {
	key := m.Layer
	b := p.bar[key]
	if b == nil {
		b = p.bars.AddBar(0,
			mpb.PrependDecorators(
				decor.Name(clean(shortID(m.Layer)), decor.WCSyncSpaceR),
				decor.Any(func(decor.Statistics) string { return "" }, decor.WC{}),
			),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f", decor.WCSyncSpace)))
		p.bar[key] = b
	}
	switch m.Phase {
	case "done", "exists":
		b.SetTotal(-1, true)
	default:
		if m.Total > 0 {
			b.SetTotal(m.Total+1, false) // the last byte is the layer's end, which "done" says
		}
		b.SetCurrent(m.Current)
	}
}

// reader counts what is read of an archive.
func (p *progress) reader(r io.Reader, name string, total int64) io.Reader {
	if p.bars == nil || total == 0 {
		return r
	}
	b := p.bars.AddBar(total, mpb.PrependDecorators(decor.Name(clean(name), decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f", decor.WCSyncSpace)))
	p.bar[name] = b
	counted, err := b.ProxyReader(r)
	if err != nil {
		return r
	}
	return counted
}

// close leaves the bars as they are and gives the terminal back.
func (p *progress) close(err error) {
	if p.bars == nil {
		return
	}
	for _, b := range p.bar {
		if err != nil {
			b.Abort(false)
		} else {
			b.SetTotal(-1, true)
		}
	}
	p.bars.Wait()
}
