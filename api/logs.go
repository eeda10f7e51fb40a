package api

import (
	"io"
	"net/http"
	"strconv"

	"vic/containervm"
)

// containerLogs is docker logs: one frame for each line, or the raw text of a terminal.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	o := containervm.LogOptions{Stdout: boolParam(r, "stdout"), Stderr: boolParam(r, "stderr"), Follow: boolParam(r, "follow")}
	if !o.Stdout && !o.Stderr {
		return badRequest("Bad parameters: you must choose at least one stream")
	}
	o.Tail = tailParam(r.URL.Query().Get("tail"))
	var err error
	if o.Since, err = timeParam(r, "since"); err != nil {
		return err
	}
	if o.Until, err = timeParam(r, "until"); err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	info := c.Info()
	spec, made := info.Spec, createdOf(info)
	if spec.Log.Unread {
		return errUnread
	}
	attributes, err := logAttributes(made.HostConfig.LogConfig.Config, made.Config.Labels, made.Config.Env)
	if err != nil {
		return err
	}
	tty := spec.TTY
	w.Header().Set("Content-Type", streamType(r, tty))
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if o.Follow {
		if err := flush.Flush(); err != nil {
			return nil // the client left
		}
	}
	p := logPrinter{timestamps: boolParam(r, "timestamps"), details: boolParam(r, "details"), attributes: attributes}
	if tty {
		p.out, p.errOut = w, w
	} else {
		f := newFrameWriter(w)
		p.out, p.errOut = f.on(stdout), f.on(stderr)
	}
	err = c.Logs(r.Context(), o, func(e containervm.LogEntry) error {
		if err := p.print(e); err != nil {
			return err
		}
		if o.Follow {
			return flush.Flush()
		}
		return nil
	})
	if err != nil {
		s.log.Debug("log ended", "container", c.ID(), "error", err)
	}
	return nil
}

// tailParam reads a number of lines; all of them, nil, is also what is not a number or less than zero.
func tailParam(s string) *int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return nil
	}
	return &n
}

// A logPrinter writes entries of a log as docker logs shows them.
type logPrinter struct {
	out, errOut         io.Writer
	timestamps, details bool
	attributes          string  // what details are
	within              [2]bool // a line of stdout or stderr has begun and not ended
	buf                 []byte
}

// timestampFormat has nine decimals always, unlike time.RFC3339Nano: columns line up.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"

func (p *logPrinter) print(e containervm.LogEntry) error {
	w, within := p.out, &p.within[0]
	if e.Stderr {
		w, within = p.errOut, &p.within[1]
	}
	b := p.buf[:0]
	if !*within {
		if p.timestamps {
			b = e.Time.UTC().AppendFormat(b, timestampFormat)
			b = append(b, ' ')
		}
		if p.details {
			b = append(append(b, p.attributes...), ' ')
		}
	}
	*within = e.Partial
	b = append(b, e.Data...)
	p.buf = b
	_, err := w.Write(b)
	return err
}
