package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"
)

// A meter shows how many bytes of a long work are done: on a terminal in one line that changes,
// elsewhere in a line now and then. Several goroutines may use it.
type meter struct {
	mu       sync.Mutex
	w        io.Writer
	what     string
	terminal bool
	every    time.Duration // between two lines
	shown    time.Time
	drawn    bool // the terminal's line is not empty
	done     int64
}

func newMeter(w io.Writer, what string) *meter {
	m := &meter{w: w, what: what, terminal: isTerminal(w), every: 10 * time.Second, shown: time.Now()}
	if m.terminal {
		m.every = 100 * time.Millisecond
	}
	return m
}

// Write counts what passes.
func (m *meter) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(len(p))
	m.show(time.Now(), m.done, 0)
	return len(p), nil
}

// set says how far the work is; a total of 0 is not known.
func (m *meter) set(done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.show(time.Now(), done, total)
}

func (m *meter) show(now time.Time, done, total int64) {
	if now.Sub(m.shown) < m.every {
		return
	}
	m.shown = now
	text := fmt.Sprintf("%s: %s", m.what, units.HumanSize(float64(done)))
	if total > 0 {
		text += fmt.Sprintf(" of %s", units.HumanSize(float64(total)))
	}
	if m.terminal {
		m.drawn = true
		fmt.Fprint(m.w, eraseLine+text)
		return
	}
	fmt.Fprintln(m.w, text)
}

// clear leaves the terminal's line empty, for others to write in.
func (m *meter) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.drawn {
		fmt.Fprint(m.w, eraseLine)
		m.drawn = false
	}
}
