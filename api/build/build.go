// Package build makes images of Dockerfiles, as Docker's classic builder does.
//
//	context (a tar) ─► Context ──┐
//	Dockerfile ─► instructions ──┼─► step after step, each upon the image of the one before
//	                             │     RUN          a container VM runs, its changes become a layer
//	                             │     COPY, ADD    a layer's tar is written, from the context, an image or a URL
//	                             │     WORKDIR      a layer with the folder, if it is not there
//	                             └     all others   the same layers with another configuration
//
// Nothing but RUN starts a VM. Parsing is BuildKit's own library; what it knows beyond the classic
// builder is refused in Docker's words.
//
// # Images and the cache
//
// Each step commits an image without a name, whose Descent (layerstore) has the image before
// it and a digest of all that the step depends on: the configuration that it results in, and the
// command, in which the content of files stands by its digest. A step whose image is there already is not
// done again; the first that is not ends that for its stage. So the cache is the images themselves: it
// goes with them, and there is nothing to be written beside them.
//
// While a build runs, the images that it stands on are held: see Engine. A container whose build has not come to its
// end is removed when the store is opened again.
//
// # Trust
//
// The context is kept in a file without a name, and its folders in memory: no path of it is
// ever one of the host's. Paths with .. and symlinks are resolved inside the context's or the image's
// root. The sizes of the Dockerfile, of names, and the number of files are bounded; that of data is by the
// datastore's room.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/containervm"
	"vic/layerstore"
)

// ErrInvalid is in all errors about what the client sent.
var ErrInvalid = errors.New("invalid build")

type invalidError struct{ error }

func (invalidError) Is(target error) bool { return target == ErrInvalid }
func (e invalidError) Unwrap() error      { return e.error }

func invalid(format string, args ...any) error { return invalidError{fmt.Errorf(format, args...)} }

// needsBuildKit refuses what only BuildKit can do, in Docker's words.
func needsBuildKit(what string) error {
	return invalid("the %s option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images with BuildKit enabled", what)
}

// An ExitError is a RUN whose command failed.
type ExitError struct {
	Command string
	Code    int
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("The command '%s' returned a non-zero code: %d", e.Command, e.Code)
}

// An Engine is the host that builds run on.
type Engine interface {
	// BaseImage returns the image that a reference or ID stands for, pulling it if need be. platform may be nil.
	BaseImage(ctx context.Context, ref string, platform *ocispec.Platform) (*layerstore.Image, error)
	// NewContainer makes a transient container of an image with a configuration that is whole, and returns
	// warnings for the user.
	NewContainer(ctx context.Context, image *layerstore.Image, cfg dockerspec.DockerOCIImageConfig) (*containervm.Container, []string, error)
	// Hold keeps an image, which need not be there yet, until release is called.
	Hold(image digest.Digest) (release func())
}

// An Output is told what a build does.
type Output interface {
	// Say is given text of the build's, and what steps write to their standard output.
	Say(text string)
	// Complain is given what steps write to their standard error.
	Complain(text string)
	// Built is told of the image that a stage came to.
	Built(image digest.Digest)
}

// Options of a build. Store, Engine, Output and Context must be set.
type Options struct {
	Store  *layerstore.Store
	Engine Engine
	Output Output
	// Context has the Dockerfile, and what COPY and ADD copy.
	Context *Context
	// File is the Dockerfile's name in the context; "" means Dockerfile.
	File string
	// Args are those of --build-arg; nil is one that was named without having a value.
	Args map[string]*string
	// Labels for the image.
	Labels map[string]string
	// Target is the stage to end with; "" means the last.
	Target string
	// CacheFrom are the images that steps may be taken from; none means all of the store.
	CacheFrom []string
	// NoCache does every step anew.
	NoCache bool
	// Remove removes the containers of steps that succeed, ForceRemove of all.
	Remove, ForceRemove bool
	// Platform of the images to begin with; nil means this machine's.
	Platform *ocispec.Platform
	// Client downloads what ADD names by a URL; nil means http.DefaultClient.
	Client *http.Client
}

// A builder is one build.
type builder struct {
	Options
	cache   *cache
	lex     *shell.Lex
	args    *buildArgs
	stages  []*stage // those that are done
	step    int      // the number of the next
	steps   int
	release []func() // of images that are held
}

// Run builds an image, tells what it does, and returns the image. The error is ErrInvalid for what is wrong with
// the Dockerfile or the context, an *ExitError, or that of an Engine or the store. Cancelling ctx ends the step that is
// being done, and removes its container.
func Run(ctx context.Context, o Options) (*layerstore.Image, error) {
	b := &builder{Options: o, args: newBuildArgs(o.Args), step: 1}
	defer func() {
		for _, release := range b.release {
			release()
		}
	}()
	file, err := b.parse()
	if err != nil {
		return nil, err
	}
	if b.cache, err = b.openCache(); err != nil {
		return nil, err
	}
	b.lex = shell.NewLex(file.escape)
	b.steps = len(file.args) + len(file.stages)
	for _, st := range file.stages {
		b.steps += len(st.Commands)
	}
	for _, arg := range file.args {
		b.announce(&arg)
		if err := b.metaArg(&arg); err != nil {
			return nil, err
		}
	}
	for i := range file.stages {
		if err := b.stage(ctx, &file.stages[i]); err != nil {
			return nil, err
		}
	}
	b.args.warn(b.Output)
	last := b.stages[len(b.stages)-1].image
	if last == nil {
		return nil, invalid("No image was generated. Is your Dockerfile empty?")
	}
	return last, nil
}

func (b *builder) say(format string, args ...any) { b.Output.Say(fmt.Sprintf(format, args...)) }

// announce says which step comes.
func (b *builder) announce(step any) {
	b.say("Step %d/%d : %v\n", b.step, b.steps, step)
	b.step++
}

// hold keeps an image until the build ends.
func (b *builder) hold(id digest.Digest) { b.release = append(b.release, b.Engine.Hold(id)) }

// metaArg is an ARG before the first FROM.
func (b *builder) metaArg(c *instructions.ArgCommand) error {
	if err := c.Expand(expander(b.lex, b.args.allowed())); err != nil {
		return invalidError{err}
	}
	for _, a := range c.Args {
		b.args.add(a.Key, a.Value)
		b.args.meta[a.Key] = a.Value
	}
	return nil
}

// expander puts variables in.
func expander(lex *shell.Lex, env []string) instructions.SingleWordExpander {
	vars := shell.EnvsFromSlice(env)
	return func(word string) (string, error) {
		out, _, err := lex.ProcessWord(word, vars)
		return out, err
	}
}

// stage does all steps of one.
func (b *builder) stage(ctx context.Context, st *instructions.Stage) error {
	if st.Name != "" && b.stageNamed(st.Name) != nil {
		return invalid("%s stage name already used", st.Name)
	}
	b.announce(st.SourceCode)
	s, err := b.from(ctx, st)
	if err != nil {
		return err
	}
	s.report()
	for _, c := range st.Commands {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.announce(c)
		if err := s.do(ctx, c); err != nil {
			return err
		}
		s.report()
	}
	if s.image != nil {
		b.Output.Built(s.image.ID)
	}
	maps.Copy(b.args.referenced, s.args.referenced)
	b.stages = append(b.stages, s)
	return nil
}

// stageNamed is the stage of a name, nil if there is none.
func (b *builder) stageNamed(name string) *stage {
	i := slices.IndexFunc(b.stages, func(s *stage) bool { return s.name != "" && s.name == strings.ToLower(name) })
	if i < 0 {
		return nil
	}
	return b.stages[i]
}

// shortID is an image or container as the client shows it.
func shortID(id string) string {
	id = strings.TrimPrefix(id, digest.SHA256.String()+":")
	return id[:min(12, len(id))]
}

// readPipe calls write with one end of a pipe and read with the other, and returns when both have ended.
func readPipe(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	done := make(chan struct{})
	var writeErr error
	go func() {
		defer close(done)
		writeErr = write(w)
		w.CloseWithError(writeErr)
	}()
	err := read(r)
	r.Close()
	<-done
	if writeErr != nil && !errors.Is(writeErr, io.ErrClosedPipe) {
		return writeErr // what the reader saw of it says less
	}
	return err
}
