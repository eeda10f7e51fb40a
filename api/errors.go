package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/common"

	"vic/api/build"
	"vic/containervm"
	"vic/fetch"
	"vic/fetch/archive"
	"vic/layerstore"
)

// A statusError is an error that knows the HTTP status Docker gives it. Its text goes to the client as
// it is, so it must be in Docker's words where Docker has words for it.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &statusError{http.StatusNotFound, fmt.Errorf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &statusError{http.StatusForbidden, fmt.Errorf(format, args...)}
}

func conflict(format string, args ...any) error {
	return &statusError{http.StatusConflict, fmt.Errorf(format, args...)}
}

// notImplemented is what Docker can do and this host cannot do yet.
func notImplemented(format string, args ...any) error {
	return &statusError{http.StatusNotImplemented, fmt.Errorf(format, args...)}
}

// classes are the kinds of error of the packages below, and their status in Docker's API. The first
// that fits counts.
var classes = []struct {
	err    error
	status int
}{
	{containervm.ErrNotModified, http.StatusNotModified},
	{containervm.ErrNotFound, http.StatusNotFound},
	{containervm.ErrForbidden, http.StatusForbidden},
	{containervm.ErrConflict, http.StatusConflict},
	{containervm.ErrInvalid, http.StatusBadRequest},
	{containervm.ErrNotImplemented, http.StatusNotImplemented},
	{containervm.ErrClosed, http.StatusServiceUnavailable},
	{build.ErrInvalid, http.StatusBadRequest},
	{layerstore.ErrNotFound, http.StatusNotFound},
	{layerstore.ErrAmbiguous, http.StatusBadRequest},
	{layerstore.ErrNoDriver, http.StatusNotFound},
	{layerstore.ErrClosed, http.StatusServiceUnavailable},
	{fetch.ErrNotFound, http.StatusNotFound},
	{fetch.ErrNoPlatform, http.StatusNotFound},
	// A docker client that gets 401 for a pull asks for a user name, so denied is "not found", as in
	// Docker: the registry does not tell which of the two it is.
	{fetch.ErrDenied, http.StatusNotFound},
	{fetch.ErrForbidden, http.StatusForbidden},
	{fetch.ErrUnauthorized, http.StatusUnauthorized},
	{fetch.ErrSchema1, http.StatusBadRequest},
	{fetch.ErrMediaType, http.StatusBadRequest},
	{context.Canceled, http.StatusServiceUnavailable},
	{context.DeadlineExceeded, http.StatusServiceUnavailable},
}

// statusOf is the HTTP status that goes with err; 500 for what nobody classified.
func statusOf(err error) int {
	if s, ok := errors.AsType[*statusError](err); ok {
		return s.status
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusBadRequest
	}
	if _, ok := errors.AsType[*archive.FormatError](err); ok {
		return http.StatusBadRequest
	}
	if _, ok := errors.AsType[*containervm.StartError](err); ok {
		return http.StatusBadRequest
	}
	if _, ok := errors.AsType[*layerstore.InUseError](err); ok {
		return http.StatusConflict
	}
	if _, ok := errors.AsType[*layerstore.VolumeInUseError](err); ok {
		return http.StatusConflict
	}
	if _, ok := errors.AsType[*layerstore.VolumeOptionError](err); ok {
		return http.StatusBadRequest
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.status
		}
	}
	if u, ok := errors.AsType[interface {
		error
		Unavailable() bool
	}](err); ok && u.Unavailable() { // a hypervisor's management that is away for a while
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// writeError answers with err. The content type is exactly application/json: with a charset the docker
// client prints the body instead of the message in it.
func writeError(w http.ResponseWriter, err error) {
	status := statusOf(err)
	if status == http.StatusNotModified {
		w.WriteHeader(status) // what runs was started, what does not was stopped: a success without a body
		return
	}
	// A message that is empty makes the client speak of a wrong API version.
	msg := err.Error()
	if msg == "" {
		msg = http.StatusText(status)
	}
	writeJSON(w, status, common.ErrorResponse{Message: msg})
}

// writeJSON answers with v as JSON and a newline. What HTML has to escape is left as it is: docker inspect prints it.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body.Bytes()) // the client left if this fails: there is nobody to tell
	return nil
}
