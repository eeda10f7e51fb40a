package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"

	"vic/containervm"
)

func (s *Server) startContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if r.ContentLength > 0 {
		return badRequest("starting a container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if r.URL.Query().Get("checkpoint") != "" {
		return notImplemented("starting from a checkpoint: this host cannot do that yet")
	}
	if err := s.metrics.start(func() error { return c.Start(finish(r)) }); err != nil {
		return startError(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// startError completes what the guest says of a process that it could not start. By the words of it
// the docker client decides between the exit codes 125, 126 and 127.
func startError(err error) error {
	if se, ok := errors.AsType[*containervm.StartError](err); ok {
		return badRequest("%s", startMessage("failed to start container", se.Message))
	}
	return err
}

// startMessage is what Docker says of a process that could not be started. It looks users up itself, before there
// is a runtime to complain.
func startMessage(what, message string) string {
	if strings.HasPrefix(message, "unable to find ") {
		return message
	}
	return what + ": unable to start container process: " + message
}

// finish is the context of what goes on although the client leaves.
func finish(r *http.Request) context.Context { return context.WithoutCancel(r.Context()) }

// stopOptions reads the parameters of stop and restart.
func stopOptions(r *http.Request) (containervm.StopOptions, error) {
	var o containervm.StopOptions
	q := r.URL.Query()
	if t := q.Get("t"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil {
			return o, badRequest("invalid value %q for t: it must be a whole number of seconds", t)
		}
		o.Grace = grace(n)
	}
	if name := q.Get("signal"); name != "" {
		sig, err := signal.ParseSignal(name)
		if err != nil {
			return o, badRequest("invalid signal: %s", name)
		}
		o.Signal = sig
	}
	return o, nil
}

func (s *Server) stopContainer(w http.ResponseWriter, r *http.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if err := c.Stop(r.Context(), o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) restartContainer(w http.ResponseWriter, r *http.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if err := c.Restart(finish(r), o); err != nil {
		return startError(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) killContainer(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("signal")
	if name == "" {
		name = "KILL"
	}
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return badRequest("invalid signal: %s", name)
	}
	c, err := s.container(r)
	if err == nil {
		err = c.Kill(finish(r), sig)
	}
	if err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", param(r, "id"), err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) pauseContainer(w http.ResponseWriter, r *http.Request) error {
	return s.changePause(w, r, (*containervm.Container).Pause)
}

func (s *Server) unpauseContainer(w http.ResponseWriter, r *http.Request) error {
	return s.changePause(w, r, (*containervm.Container).Unpause)
}

func (s *Server) changePause(w http.ResponseWriter, r *http.Request, change func(*containervm.Container, context.Context) error) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if err := change(c, finish(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// waitContainer registers the waiter, answers with the headers, and only when the container has ended
// with the body: docker run starts the container when it has seen the headers.
func (s *Server) waitContainer(w http.ResponseWriter, r *http.Request) error {
	cond := containervm.WaitCondition(r.URL.Query().Get("condition"))
	switch cond {
	case "", containervm.NotRunning, containervm.NextExit, containervm.Removed:
	default:
		return badRequest("invalid condition: %q", cond)
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	result, err := c.Wait(r.Context(), cond)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return nil // the client left
	}
	res := <-result
	if r.Context().Err() != nil {
		return nil
	}
	reply := container.WaitResponse{StatusCode: int64(res.ExitCode)}
	if res.Err != nil {
		reply.Error = &container.WaitExitError{Message: res.Err.Error()}
	}
	json.NewEncoder(w).Encode(reply) // the client left if this fails
	return nil
}

func (s *Server) renameContainer(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	if name == "" {
		return badRequest("neither old nor new names may be empty")
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if err := c.Rename(name); err != nil {
		if errors.Is(err, containervm.ErrConflict) {
			return fmt.Errorf("Error when allocating new name: %w", err) // Docker's words
		}
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// sizeParams reads the size of a terminal.
func sizeParams(r *http.Request) (containervm.Size, error) {
	var v [2]uint64
	for i, name := range []string{"height", "width"} {
		text := r.URL.Query().Get(name[:1])
		// ParseUint takes no sign, and does not tell a number that is negative from what is none.
		digits, negative := strings.CutPrefix(text, "-")
		n, err := strconv.ParseUint(digits, 10, 32)
		if err == nil && negative {
			err = strconv.ErrRange
		} else if err != nil {
			err = errors.Unwrap(err)
		}
		if err != nil {
			return containervm.Size{}, badRequest("invalid resize %s %q: %w", name, text, err)
		}
		v[i] = n
	}
	return sizeOf(v[0], v[1])
}

func (s *Server) resizeContainer(w http.ResponseWriter, r *http.Request) error {
	size, err := sizeParams(r)
	if err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	return c.Resize(r.Context(), size)
}

func (s *Server) removeContainer(w http.ResponseWriter, r *http.Request) error {
	if boolParam(r, "link") {
		return badRequest("--link is not supported: this host has no links")
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if err := c.Remove(finish(r), containervm.RemoveOptions{Force: boolParam(r, "force"), Volumes: boolParam(r, "v")}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
