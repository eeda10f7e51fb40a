package tether

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"vic/tether/wire"
)

// taskBuffer is what a task reads or writes at once.
const taskBuffer = 64 << 10

// task begins a task. What can be refused is refused before the answer; what fails later is
// told at its end.
func (g *guest) task(s *wire.GuestSession, r wire.Request) (wire.Reply, error) {
	t := r.Task
	if t == nil || t.ID == "" {
		return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: "task of nothing"}
	}
	if _, err := g.process(""); err != nil {
		return wire.Reply{}, err // there is no root yet, or it is being unmounted
	}
	var reply wire.Reply
	var work func(c *wire.Channel) error
	switch t.Kind {
	case wire.TaskRead:
		st, err := statPath(t.Path)
		if err != nil {
			return wire.Reply{}, fileError(err)
		}
		reply.Path = &st
		work = func(c *wire.Channel) error {
			return buffered(c, func(w io.Writer) error { return readPath(w, t.Path) })
		}
	case wire.TaskRoot:
		work = func(c *wire.Channel) error { return buffered(c, readRoot) }
	case wire.TaskProcesses:
		work = func(c *wire.Channel) error {
			return buffered(c, func(w io.Writer) error { return writeProcesses(json.NewEncoder(w)) })
		}
	case wire.TaskWrite:
		x, err := g.newExtraction(t)
		if err != nil {
			return wire.Reply{}, err
		}
		work = func(c *wire.Channel) error {
			in := bufio.NewReaderSize(c, taskBuffer)
			if err := x.run(tar.NewReader(in)); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, in) // the padding that some put behind a tar's end
			return err
		}
	default:
		return wire.Reply{}, &wire.Error{Kind: wire.Invalid, Message: fmt.Sprintf("task %q is not known", t.Kind)}
	}
	stream, rest, err := s.Open(r.Channel)
	if err != nil {
		return wire.Reply{}, err
	}
	go func() { // until it is done, or the session is lost
		var exit wire.Exit
		if err := work(stream); err != nil {
			exit = wire.Exit{Code: 1, Error: err.Error()}
		}
		_ = stream.Close() // fails if the session is lost, as does the next
		_ = rest.Close()
		_ = s.Exited(t.ID, exit)
	}()
	return reply, nil
}

// buffered has write write in large pieces.
func buffered(c *wire.Channel, write func(io.Writer) error) error {
	w := bufio.NewWriterSize(c, taskBuffer)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}
