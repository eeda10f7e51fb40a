package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"

	"vic/api/build"
)

// A progressMessage is a line of a progress stream. An error is sent in both fields: clients read
// errorDetail, old ones error.
type progressMessage struct {
	Stream string               `json:"stream,omitempty"` // text to show as it is
	Status string               `json:"status,omitempty"`
	Detail *jsonstream.Progress `json:"progressDetail,omitempty"`
	ID     string               `json:"id,omitempty"`
	Error  string               `json:"error,omitempty"`
	Cause  *jsonstream.Error    `json:"errorDetail,omitempty"`
	Aux    any                  `json:"aux,omitempty"` // for programs
}

// progressEvery bounds how often the progress of one layer is told; a change of what happens to it is
// always told.
const progressEvery = 100 * time.Millisecond

// A progressStream tells a client what a long request does, one JSON object a line, each flushed. The
// reply begins with the first line; until then the request can still fail with a status of its own.
// Several goroutines may use it.
type progressStream struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	flush   *http.ResponseController
	started bool
	ended   bool
	last    map[string]told // by ID
}

// told is what a client was last told of an ID.
type told struct {
	status string
	at     time.Time
}

func newProgressStream(w http.ResponseWriter) *progressStream {
	return &progressStream{w: w, flush: http.NewResponseController(w), last: make(map[string]told)}
}

// say writes a line about the whole request.
func (p *progressStream) say(id, status string) {
	p.send(progressMessage{ID: id, Status: status})
}

// stream writes text, which ends its lines itself.
func (p *progressStream) stream(text string) { p.send(progressMessage{Stream: text}) }

// layer writes a line about one layer, unless one of the same status was written just before. With a
// total of 0 it has no numbers.
func (p *progressStream) layer(id, status string, current, total int64) {
	p.mu.Lock()
	now := time.Now()
	last := p.last[id]
	if last.status == status && now.Sub(last.at) < progressEvery {
		p.mu.Unlock()
		return
	}
	p.last[id] = told{status, now}
	p.mu.Unlock()
	m := progressMessage{ID: id, Status: status, Detail: &jsonstream.Progress{}}
	if total > 0 {
		m.Detail.Current, m.Detail.Total = current, total
	}
	p.send(m)
}

// fail ends the stream with an error; it returns err to be answered in the ordinary way if the stream
// has not begun.
func (p *progressStream) fail(err error) error {
	p.mu.Lock()
	started := p.started
	p.mu.Unlock()
	if !started {
		return err
	}
	p.abort(err)
	return nil
}

// abort ends the stream with an error, be it all that there is.
func (p *progressStream) abort(err error) {
	cause := &jsonstream.Error{Message: err.Error()}
	if exit, ok := errors.AsType[*build.ExitError](err); ok {
		cause.Code = exit.Code // which docker build exits with
	}
	p.send(progressMessage{Error: err.Error(), Cause: cause})
}

// end makes what is told from now on go nowhere: the reply is complete.
func (p *progressStream) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
}

func (p *progressStream) send(m progressMessage) {
	line, err := json.Marshal(m)
	if err != nil {
		panic("api: encode progress: " + err.Error()) // strings and numbers, and what aux is given
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if !p.started {
		p.started = true
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
	}
	// A client that left shows in the request's context.
	p.w.Write(append(line, '\r', '\n'))
	p.flush.Flush()
}
