package containervm

import (
	"errors"
	"fmt"
)

// What went wrong, in kinds that a caller branches on by errors.Is. Every error
// of this package that is of none of them is a failure of the VCH itself.
var (
	// ErrNotFound: no such container or exec. Docker answers 404.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the container's state, or another's name, does not allow it. 409.
	ErrConflict = errors.New("conflict")
	// ErrNotRunning: the container does not run. It is an ErrConflict too. 409.
	ErrNotRunning error = &kind{"not running", ErrConflict}
	// ErrPaused: the container stands still. It is an ErrConflict too. 409.
	ErrPaused error = &kind{"paused", ErrConflict}
	// ErrForbidden: it makes sense, and is not allowed here. 403.
	ErrForbidden = errors.New("forbidden")
	// ErrNotModified: what was asked for is so already. 304, no body.
	ErrNotModified = errors.New("not modified")
	// ErrInvalid: the request makes no sense. 400.
	ErrInvalid = errors.New("invalid")
	// ErrNotImplemented: it makes sense, and cannot be done yet. 501.
	ErrNotImplemented = errors.New("not implemented")
	// ErrClosed: the Manager has been closed. 503.
	ErrClosed = errors.New("containervm: closed")
)

// kind is a sentinel that belongs to a wider one.
type kind struct {
	msg   string
	wider error
}

func (k *kind) Error() string { return k.msg }
func (k *kind) Unwrap() error { return k.wider }

// Error is a request refused, in docker's words.
type Error struct {
	Kind error // one of the sentinels above
	Msg  string
}

func (e *Error) Error() string { return e.Msg }
func (e *Error) Unwrap() error { return e.Kind }

func refuse(kind error, format string, args ...any) error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

// StartError says why a container's or an exec's process never ran, by the
// guest's word. Message is as docker has it and holds the words by which clients choose an
// exit code: "executable file not found", "permission denied", …. A container
// that failed so has ended: its ExitCode is this one.
type StartError struct {
	ExitCode int // 126, 127 or 128
	Message  string
}

func (e *StartError) Error() string { return e.Message }

// ErrDetached is what Stream returns when the client typed the detach keys.
// The process runs on.
var ErrDetached = errors.New("containervm: detached")
