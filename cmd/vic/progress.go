package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"vic/layerstore"
)

// A progress shows how a pull or a push goes: on a terminal one line that changes, elsewhere a line for
// each layer that is there. Several goroutines may use it.
type progress struct {
	mu       sync.Mutex
	w        io.Writer
	what     string
	done     string // what has been done with a layer that is there
	terminal bool
	layers   map[digest.Digest]layerstore.ProgressEvent
	drawn    time.Time
	ended    bool
}

func newProgress(w io.Writer, what, done string) *progress {
	return &progress{w: w, what: what, done: done, terminal: isTerminal(w), layers: make(map[digest.Digest]layerstore.ProgressEvent)}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// layer tells of one layer.
func (p *progress) layer(e layerstore.ProgressEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.layers[e.Layer]
	p.layers[e.Layer] = e
	if p.ended {
		return
	}
	if p.terminal {
		p.draw(time.Now())
		return
	}
	if before.Stage == e.Stage {
		return
	}
	switch e.Stage {
	case layerstore.StageDone:
		fmt.Fprintf(p.w, "%s: %s %s\n", short(e.Layer), p.done, units.HumanSize(float64(e.Total)))
	case layerstore.StageExists:
		fmt.Fprintf(p.w, "%s: exists\n", short(e.Layer))
	}
}

// note says something in a line of its own.
func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if p.terminal {
		fmt.Fprint(p.w, eraseLine)
	}
	fmt.Fprintln(p.w, text)
}

// above writes a line to out, which may be the same terminal.
func (p *progress) above(out io.Writer, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && !p.ended {
		fmt.Fprint(p.w, eraseLine)
	}
	fmt.Fprintln(out, text)
}

// push tells of one layer on its way out.
func (p *progress) push(e layerstore.PushEvent) {
	ev := layerstore.ProgressEvent{Layer: e.Blob, Total: e.Size}
	switch e.Stage {
	case layerstore.PushPreparing:
		return // its blob is not known
	case layerstore.PushSending:
		ev.Stage = layerstore.StageFetching
	case layerstore.PushSent:
		ev.Stage, ev.Current = layerstore.StageDone, e.Size
	case layerstore.PushExists, layerstore.PushMounted:
		ev.Stage = layerstore.StageExists
	}
	p.layer(ev)
}

// sent tells how many bytes of a blob have been sent.
func (p *progress) sent(blob digest.Digest, n int64) {
	p.mu.Lock()
	ev, ok := p.layers[blob]
	p.mu.Unlock()
	if ok && ev.Stage == layerstore.StageFetching {
		ev.Current = n
		p.layer(ev)
	}
}

// eraseLine goes to the beginning of a terminal's line and empties it.
const eraseLine = "\r\x1b[K"

// draw replaces the line on a terminal, ten times a second at most.
func (p *progress) draw(now time.Time) {
	if now.Sub(p.drawn) < 100*time.Millisecond {
		return
	}
	p.drawn = now
	var there int
	var current, total int64
	for _, l := range p.layers {
		if l.Stage >= layerstore.StageDone {
			there++
		}
		current += l.Current
		total += l.Total
	}
	fmt.Fprintf(p.w, "%s%s: %d of %d layers, %s of %s", eraseLine, p.what, there, len(p.layers),
		units.HumanSize(float64(current)), units.HumanSize(float64(total)))
}

// clear leaves the terminal's line empty, for others to write in.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && !p.ended {
		fmt.Fprint(p.w, eraseLine)
	}
}

// end leaves the terminal's line empty. It may be called more than once.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && !p.ended {
		fmt.Fprint(p.w, eraseLine)
	}
	p.ended = true
}
