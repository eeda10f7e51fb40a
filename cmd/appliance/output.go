//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// maxLine bounds a line of the log.
	maxLine = 16 << 10
	// maxEarly bounds what is kept of the log until there is a file for it.
	maxEarly = 64 << 10
	// maxLog bounds the log's file. One before it is kept.
	maxLog = 16 << 20
)

// output is the log, of this program and of vic serve: it goes to the console, to a file on the state disk, and to a syslog
// server. It may be used concurrently.
type output struct {
	mu      sync.Mutex
	console io.Writer
	early   bytes.Buffer // what came before there was a file
	file    *logFile     // nil before and after
	syslog  *syslog      // nil if there is none
	sent    sync.WaitGroup
}

func newOutput(console io.Writer) *output { return &output{console: console} }

// Write takes a line, or several.
func (o *output) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		o.line(bytes.TrimSuffix(line, []byte("\n")))
	}
	return len(p), nil
}

// line takes a line without its end. What cannot be written to one place is in the others.
func (o *output) line(line []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	whole := append(append([]byte(nil), line...), '\n')
	_, _ = o.console.Write(whole)
	switch {
	case o.file != nil:
		if err := o.file.write(whole); err != nil {
			fmt.Fprintf(o.console, "log: %v\n", err)
		}
	case o.early.Len()+len(whole) <= maxEarly:
		o.early.Write(whole)
	}
	if o.syslog != nil {
		o.syslog.send(string(line))
	}
}

// openFile has the log go to a file from now on, and what there was.
func (o *output) openFile(path string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := openLog(path, maxLog)
	if err != nil {
		return err
	}
	if err := f.write(o.early.Bytes()); err != nil {
		return err
	}
	o.file, o.early = f, bytes.Buffer{}
	return nil
}

// addSyslog has the log go to a server from now on. Once ctx ends, it is not waited for.
func (o *output) addSyslog(ctx context.Context, s *syslog) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.syslog = s
	o.sent.Go(func() { s.run(ctx) })
}

// close ends the file and the server's messages.
func (o *output) close() {
	o.mu.Lock()
	f := o.file
	if o.syslog != nil {
		o.syslog.close()
	}
	o.file, o.syslog = nil, nil
	o.mu.Unlock()
	if f != nil {
		if err := f.close(); err != nil {
			fmt.Fprintf(o.console, "log: %v\n", err)
		}
	}
	o.sent.Wait()
}

// A lineWriter cuts what is written to it into lines.
type lineWriter struct {
	line    func([]byte)
	last    string // that was not empty
	partial []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, end := bytes.Cut(p, []byte("\n"))
		if room := maxLine - len(w.partial); len(part) > room {
			part, rest, end = p[:room], p[room:], true
		}
		w.partial, p = append(w.partial, part...), rest
		if end {
			w.emit()
		}
	}
	return n, nil
}

// flush takes what has no end for a line.
func (w *lineWriter) flush() {
	if len(w.partial) > 0 {
		w.emit()
	}
}

func (w *lineWriter) emit() {
	if len(bytes.TrimSpace(w.partial)) > 0 {
		w.last = string(w.partial)
	}
	w.line(w.partial)
	w.partial = w.partial[:0]
}

// A logFile is a file that is renamed to NAME.1 when it is full. A power cut takes no more of it than the last moments.
type logFile struct {
	path      string
	max, size int64
	f         *os.File
	due       time.Time // when f is synced next, or was last
}

// syncDelay is how long what was written may not be on the disk.
const syncDelay = time.Second

func openLog(path string, most int64) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &logFile{path: path, max: most, size: fi.Size(), f: f}, nil
}

func (l *logFile) write(p []byte) error {
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.turn(); err != nil {
			return err
		}
	}
	if now := time.Now(); now.After(l.due) {
		l.due = now.Add(syncDelay)
		f := l.f
		time.AfterFunc(syncDelay, func() { _ = f.Sync() }) // if it is closed by then, it was synced
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return err
}

// turn begins a new file.
func (l *logFile) turn() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	next, err := openLog(l.path, l.max)
	if err != nil {
		return err
	}
	old := *l
	*l = *next
	return old.close()
}

func (l *logFile) close() error { return errors.Join(l.f.Sync(), l.f.Close()) }
