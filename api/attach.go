package api

import (
	"errors"
	"io"
	"net/http"

	"vic/containervm"
)

// attachContainer takes the connection over and carries the container's streams. A container that does
// not run can be attached to: the streams begin with its next start, which is how docker run misses
// nothing.
func (s *Server) attachContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	o, err := attachOptions(r, c)
	if err != nil {
		return err
	}
	a, err := c.Attach(o)
	if errors.Is(err, containervm.ErrPaused) {
		return conflict("container %s is paused, unpause the container before attach", param(r, "id"))
	}
	if err != nil {
		return err
	}
	defer a.Close()
	tty := c.Info().Spec.TTY
	conn, err := hijack(w, r, streamType(r, tty))
	if err != nil {
		return err
	}
	defer conn.close()
	out, errOut := conn.outputs(tty)
	if err := a.Stream(r.Context(), conn.input(o.Stdin), out, errOut); err != nil {
		s.log.Debug("attachment ended", "container", c.ID(), "error", err)
	}
	return nil
}

// attachOptions reads the parameters of attaching.
func attachOptions(r *http.Request, c *containervm.Container) (o containervm.AttachOptions, err error) {
	live, logs := boolParam(r, "stream"), boolParam(r, "logs") // with neither the stream is empty
	if logs && c.Info().Spec.Log.Unread {
		return o, errUnread
	}
	o = containervm.AttachOptions{
		Stdin: boolParam(r, "stdin") && live, Stdout: boolParam(r, "stdout"), Stderr: boolParam(r, "stderr"),
		Logs: logs, LogsOnly: !live,
	}
	o.DetachKeys, err = detachKeys(r.URL.Query().Get("detachKeys"), c.Info().Spec.TTY)
	return o, err
}

// detachKeys are the keys of a request; without any, only a terminal can be left by keys.
func detachKeys(text string, tty bool) ([]byte, error) {
	if text == "" && !tty {
		return nil, nil
	}
	return parseDetachKeys(text)
}

// input is where stdin is read from, nil if it is not wanted.
func (s *session) input(wanted bool) io.Reader {
	if !wanted {
		return nil
	}
	return s
}

// outputs are the writers for a process's stdout and stderr: raw with a terminal, framed without.
func (s *session) outputs(tty bool) (out, errOut io.Writer) {
	if tty {
		return s, s
	}
	f := newFrameWriter(s)
	return f.on(stdout), f.on(stderr)
}
