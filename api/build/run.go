package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"vic/containervm"
)

// run is RUN: a container VM runs the command, and what it changed becomes a layer.
func (s *stage) run(c *instructions.RunCommand) error {
	if len(c.FlagsUsed) > 0 {
		return needsBuildKit("--" + c.FlagsUsed[0])
	}
	if len(c.Files) > 0 {
		return needsBuildKit("heredoc")
	}
	args := commandLine(&s.config, c.ShellDependantCmdLine)
	if s.image == nil {
		return invalid("exec: %q: no such file or directory: the image is empty", args[0])
	}
	vars := s.args.beside(s.config.Env)
	createdBy := args
	if len(vars) > 0 {
		// No command begins with a bar, so this is none.
		kept := s.args.recorded(vars)
		createdBy = slices.Concat([]string{fmt.Sprintf("|%d", len(kept))}, kept, args)
	}
	if hit, err := s.probe(createdBy); hit || err != nil {
		return err
	}
	cfg := s.config
	cfg.Cmd, cfg.Entrypoint = args, nil
	cfg.Env = slices.Concat(cfg.Env, vars)
	cfg.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
	container, warnings, err := s.b.Engine.NewContainer(s.ctx, s.image, cfg)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		s.b.say(" ---> [Warning] %s\n", w)
	}
	s.b.say(" ---> Running in %s\n", shortID(container.ID()))
	err = s.await(container, args)
	if err == nil {
		err = s.commit(createdBy, func(w io.Writer) error { return container.WriteLayer(s.ctx, w, false) })
	}
	if err == nil {
		container.Committed(s.image.ID, "", "")
	}
	return s.dismiss(container, err)
}

// await runs the container to its end.
func (s *stage) await(c *containervm.Container, args []string) error {
	streams, err := c.Attach(containervm.AttachOptions{Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	defer streams.Close()
	if err := c.Start(s.ctx); err != nil {
		return err
	}
	if err := streams.Stream(s.ctx, nil, textWriter(s.b.Output.Say), textWriter(s.b.Output.Complain)); err != nil {
		return err
	}
	ended, err := c.Wait(s.ctx, containervm.NotRunning)
	if err != nil {
		return err
	}
	result := <-ended
	if result.Err != nil {
		return result.Err
	}
	if result.ExitCode != 0 {
		return &ExitError{strings.Join(args, " "), result.ExitCode}
	}
	return nil
}

// dismiss removes a step's container if it is to be removed. One that was being run when the build was cancelled always is.
func (s *stage) dismiss(c *containervm.Container, err error) error {
	cancelled := s.ctx.Err() != nil
	if !cancelled && !s.b.ForceRemove && (!s.b.Remove || err != nil) {
		return errors.Join(err, c.Retain())
	}
	removeErr := c.Remove(context.WithoutCancel(s.ctx), containervm.RemoveOptions{Force: true, Volumes: true})
	if removeErr != nil && err == nil {
		return fmt.Errorf("remove intermediate container: %w", removeErr)
	}
	s.b.say(" ---> Removed intermediate container %s\n", shortID(c.ID()))
	return err
}

// A textWriter passes on what is written.
type textWriter func(string)

func (w textWriter) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}
