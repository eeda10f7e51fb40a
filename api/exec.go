package api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// An execExtra is kept with an exec for inspect.
type execExtra struct {
	detachKeys []byte
	privileged bool
}

func (s *Server) createExec(w http.ResponseWriter, r *http.Request) error {
	var body container.ExecCreateRequest
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	c, err := s.container(r)
	if err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return badRequest("No exec command specified")
	}
	keys, err := detachKeys(body.DetachKeys, body.Tty)
	if err != nil {
		return err
	}
	env, err := mergeEnv(body.Env, nil)
	if err != nil {
		return err
	}
	spec := containervm.ExecSpec{
		Args: body.Cmd, Env: env, Dir: body.WorkingDir, User: body.User, TTY: body.Tty,
		Stdin: body.AttachStdin, Stdout: body.AttachStdout, Stderr: body.AttachStderr, DetachKeys: keys, Privileged: body.Privileged,
		Extra: execExtra{keys, body.Privileged},
	}
	if spec.Size, err = consoleSize(body.ConsoleSize); err != nil {
		return err
	}
	e, err := c.CreateExec(spec)
	if errors.Is(err, containervm.ErrPaused) {
		return conflict("Container %s is paused, unpause the container before exec", param(r, "id"))
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, common.IDResponse{ID: e.ID()})
}

// consoleSize reads the height and width of a terminal, which may be absent.
func consoleSize(size *[2]uint) (containervm.Size, error) {
	if size == nil {
		return containervm.Size{}, nil
	}
	return sizeOf(uint64(size[0]), uint64(size[1]))
}

// startExec starts the process and, unless it is detached, takes the connection over. The answer comes
// before the process runs, since clients send its input on the same connection; what is wrong with the
// command is therefore told as its output.
func (s *Server) startExec(w http.ResponseWriter, r *http.Request) error {
	var body container.ExecStartRequest
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	e, err := s.containers.Exec(param(r, "id"))
	if err != nil {
		return err
	}
	size, err := consoleSize(body.ConsoleSize)
	if err != nil {
		return err
	}
	if body.Detach {
		if err := e.Start(finish(r), containervm.ExecStartOptions{Detach: true, Size: size}); err != nil {
			return execError(err)
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	switch info := e.Info(); {
	case info.Started:
		return conflict("exec command %s has already run", info.ID)
	case e.Container().Info().State.Status == containervm.Paused:
		return conflict("Container %s is paused, unpause the container before exec", info.ContainerID)
	case !e.Container().Info().State.Status.Alive():
		return conflict("container %s is not running", info.ContainerID)
	}
	conn, err := hijack(w, r, streamType(r, body.Tty))
	if err != nil {
		return err
	}
	defer conn.close()
	out, errOut := conn.outputs(body.Tty)
	if err := e.Start(finish(r), containervm.ExecStartOptions{Size: size}); err != nil {
		fmt.Fprintf(out, "%v\r\n", execError(err))
		return nil
	}
	if err := e.Stream(r.Context(), conn.input(e.Info().Spec.Stdin), out, errOut); err != nil {
		s.log.Debug("exec stream ended", "exec", e.ID(), "error", err)
	}
	return nil
}

// execError completes what the guest says of a process that it could not start.
func execError(err error) error {
	if se, ok := errors.AsType[*containervm.StartError](err); ok {
		return badRequest("%s", startMessage("exec failed", se.Message))
	}
	return err
}

func (s *Server) resizeExec(w http.ResponseWriter, r *http.Request) error {
	size, err := sizeParams(r)
	if err != nil {
		return err
	}
	e, err := s.containers.Exec(param(r, "id"))
	if err != nil {
		return err
	}
	return e.Resize(r.Context(), size)
}

func (s *Server) inspectExec(w http.ResponseWriter, r *http.Request) error {
	e, err := s.containers.Exec(param(r, "id"))
	if err != nil {
		return err
	}
	info := e.Info()
	extra, _ := info.Spec.Extra.(execExtra)
	return writeJSON(w, http.StatusOK, container.ExecInspectResponse{
		ID:          info.ID,
		ContainerID: info.ContainerID,
		Running:     info.Running,
		ExitCode:    info.ExitCode,
		Pid:         info.PID,
		OpenStdin:   info.Spec.Stdin,
		OpenStdout:  info.Spec.Stdout,
		OpenStderr:  info.Spec.Stderr,
		DetachKeys:  extra.detachKeys,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: info.Spec.TTY, Entrypoint: info.Spec.Args[0], Arguments: info.Spec.Args[1:],
			Privileged: &extra.privileged, User: info.Spec.User,
		},
	})
}
