package build

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

// defaultShell runs commands that are not lists of words.
var defaultShell = []string{"/bin/sh", "-c"}

// variables are those that instructions see.
func (s *stage) variables() []string {
	return append(slices.Clone(s.config.Env), s.args.beside(s.config.Env)...)
}

// do does one instruction.
func (s *stage) do(ctx context.Context, c instructions.Command) error {
	s.ctx = ctx
	if ex, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := ex.Expand(expander(s.b.lex, s.variables())); err != nil {
			return invalidError{err}
		}
	}
	switch c := c.(type) {
	case *instructions.RunCommand:
		return s.run(c)
	case *instructions.CopyCommand:
		return s.copy(c)
	case *instructions.AddCommand:
		return s.add(c)
	case *instructions.WorkdirCommand:
		return s.workdir(c)
	case *instructions.ArgCommand:
		return s.note(s.arg(c))
	}
	e := editor{&s.config, s.b.lex, s.variables(), s.b.say}
	if c, ok := c.(*instructions.MaintainerCommand); ok {
		s.author = c.Maintainer
		return s.note("MAINTAINER " + c.Maintainer)
	}
	if c, ok := c.(*instructions.EntrypointCommand); ok && !s.cmdSet {
		s.config.Cmd = nil // the base image's is for its own entrypoint
		return s.noteEdit(e, c)
	}
	if c, ok := c.(*instructions.CmdCommand); ok && len(c.CmdLine) > 0 {
		s.cmdSet = true
	}
	return s.noteEdit(e, c)
}

func (s *stage) noteEdit(e editor, c instructions.Command) error {
	what, err := e.edit(c)
	if err != nil {
		return err
	}
	return s.note(what)
}

// note commits a step that changes nothing but the configuration, as history says what it did.
func (s *stage) note(what string) error {
	createdBy := append(shellOf(&s.config), "#(nop) ", what)
	if hit, err := s.probe(createdBy); hit || err != nil {
		return err
	}
	return s.commit(createdBy, nil)
}

func (s *stage) arg(c *instructions.ArgCommand) string {
	var list []string
	for _, a := range c.Args {
		s.args.add(a.Key, a.Value)
		text := a.Key
		if a.Value != nil {
			text += "=" + *a.Value
		}
		list = append(list, text)
	}
	return "ARG " + strings.Join(list, " ")
}

// shellOf is what runs a command line.
func shellOf(cfg *dockerspec.DockerOCIImageConfig) []string {
	if len(cfg.Shell) > 0 {
		return slices.Clone(cfg.Shell)
	}
	return slices.Clone(defaultShell)
}

// commandLine is a command as it is run.
func commandLine(cfg *dockerspec.DockerOCIImageConfig, c instructions.ShellDependantCmdLine) []string {
	if c.PrependShell && c.CmdLine != nil {
		return append(shellOf(cfg), c.CmdLine...)
	}
	return c.CmdLine
}

// An editor changes an image's configuration as instructions say that need nothing else.
type editor struct {
	cfg  *dockerspec.DockerOCIImageConfig
	lex  *shell.Lex
	vars []string
	say  func(format string, args ...any)
}

// edit carries out an instruction, and returns what history is to say.
func (e editor) edit(c instructions.Command) (string, error) {
	switch c := c.(type) {
	case *instructions.EnvCommand:
		var said strings.Builder
		said.WriteString("ENV")
		for _, kv := range c.Env {
			said.WriteString(" " + kv.String())
			e.cfg.Env = SetEnv(e.cfg.Env, kv.Key, kv.Value)
		}
		return said.String(), nil
	case *instructions.LabelCommand:
		return e.label(c), nil
	case *instructions.CmdCommand:
		e.cfg.Cmd = commandLine(e.cfg, c.ShellDependantCmdLine)
		return fmt.Sprintf("CMD %q", e.cfg.Cmd), nil
	case *instructions.EntrypointCommand:
		e.cfg.Entrypoint = commandLine(e.cfg, c.ShellDependantCmdLine)
		return fmt.Sprintf("ENTRYPOINT %q", e.cfg.Entrypoint), nil
	case *instructions.ExposeCommand:
		return e.expose(c)
	case *instructions.UserCommand:
		e.cfg.User = c.User
		return "USER " + c.User, nil
	case *instructions.VolumeCommand:
		return e.volume(c)
	case *instructions.StopSignalCommand:
		if _, err := signal.ParseSignal(c.Signal); err != nil {
			return "", invalidError{err}
		}
		e.cfg.StopSignal = c.Signal
		return "STOPSIGNAL " + c.Signal, nil
	case *instructions.HealthCheckCommand:
		if old := e.cfg.Healthcheck; old != nil && len(old.Test) > 0 && old.Test[0] != "NONE" {
			e.say("Note: overriding previous HEALTHCHECK: %v\n", old.Test)
		}
		e.cfg.Healthcheck = c.Health
		h := c.Health
		return fmt.Sprintf("HEALTHCHECK &{%q %q %q %q %q %q}", h.Test, h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, rune(h.Retries)), nil
	case *instructions.OnbuildCommand:
		e.cfg.OnBuild = append(slices.Clone(e.cfg.OnBuild), c.Expression)
		return "ONBUILD " + c.Expression, nil
	case *instructions.ShellCommand:
		e.cfg.Shell = c.Shell
		return fmt.Sprintf("SHELL %v", c.Shell), nil
	case *instructions.WorkdirCommand:
		dir, err := workdir(e.cfg.WorkingDir, c.Path)
		if err != nil {
			return "", err
		}
		e.cfg.WorkingDir = dir
		return "WORKDIR " + dir, nil
	}
	return "", invalid("unsupported instruction %s", strings.ToUpper(c.Name()))
}

func (e editor) label(c *instructions.LabelCommand) string {
	labels := make(map[string]string, len(e.cfg.Labels)+len(c.Labels))
	for key, value := range e.cfg.Labels {
		labels[key] = value
	}
	var said strings.Builder
	said.WriteString("LABEL")
	for _, kv := range c.Labels {
		said.WriteString(" " + kv.String())
		labels[kv.Key] = kv.Value
	}
	e.cfg.Labels = labels
	return said.String()
}

func (e editor) volume(c *instructions.VolumeCommand) (string, error) {
	volumes := make(map[string]struct{}, len(e.cfg.Volumes)+len(c.Volumes))
	for v := range e.cfg.Volumes {
		volumes[v] = struct{}{}
	}
	for _, v := range c.Volumes {
		if v = strings.TrimSpace(v); v == "" {
			return "", invalid("VOLUME specified can not be an empty string")
		}
		volumes[v] = struct{}{}
	}
	e.cfg.Volumes = volumes
	return fmt.Sprintf("VOLUME %v", c.Volumes), nil
}

// expose adds ports, PORT[-PORT][/PROTOCOL] each. One variable may have several.
func (e editor) expose(c *instructions.ExposeCommand) (string, error) {
	ports := make(map[string]struct{}, len(e.cfg.ExposedPorts)+len(c.Ports))
	for p := range e.cfg.ExposedPorts {
		ports[p] = struct{}{}
	}
	var words []string
	for _, p := range c.Ports {
		list, err := e.lex.ProcessWords(p, shell.EnvsFromSlice(e.vars))
		if err != nil {
			return "", invalidError{err}
		}
		words = append(words, list...)
	}
	for _, w := range words {
		if err := exposePorts(ports, w); err != nil {
			return "", err
		}
	}
	e.cfg.ExposedPorts = ports
	return "EXPOSE " + strings.Join(words, " "), nil
}

func exposePorts(ports map[string]struct{}, word string) error {
	span, protocol, ok := strings.Cut(word, "/")
	if !ok {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	from, to, isSpan := strings.Cut(span, "-")
	if !isSpan {
		to = from
	}
	first, err1 := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	switch {
	case err1 != nil || err2 != nil || first == 0 || last < first:
		return invalid("invalid containerPort: %s", word)
	case protocol != "tcp" && protocol != "udp" && protocol != "sctp":
		return invalid("invalid proto: %s", protocol)
	}
	for port := first; port <= last; port++ {
		ports[strconv.FormatUint(port, 10)+"/"+protocol] = struct{}{}
	}
	return nil
}

// SetEnv returns env with a variable set, in its place if it is there.
func SetEnv(env []string, key, value string) []string {
	env = slices.Clone(env)
	for i, e := range env {
		if strings.HasPrefix(e, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// workdir is the working directory that WORKDIR makes of the one before.
func workdir(current, requested string) (string, error) {
	if requested == "" {
		return "", invalid("cannot normalize nothing")
	}
	if path.IsAbs(requested) {
		return path.Clean(requested), nil
	}
	return path.Join("/", current, requested), nil
}
