package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/api/build"
	"vic/containervm"
	"vic/fetch"
	"vic/fetch/archive"
	"vic/layerstore"
)

// buildImage is docker build. What goes wrong before the first line is an ordinary error reply; afterwards it is the
// last line.
func (s *Server) buildImage(w http.ResponseWriter, r *http.Request) error {
	b, err := buildRequestOf(r.URL.Query())
	if err != nil {
		return err
	}
	auths, err := registryConfig(r)
	if err != nil {
		return err
	}
	ctx, done, err := s.builds.begin(r.Context(), b.id)
	if err != nil {
		return err
	}
	defer done()
	files, err := s.buildContext(ctx, r, b)
	if err != nil {
		return err
	}
	defer files.Close()
	out := newProgressStream(w)
	defer out.end()
	o := &buildOutput{stream: out, quiet: b.quiet}
	b.build.Store, b.build.Context, b.build.Output = s.store, files, o
	b.build.Engine = &buildEngine{s, b, o, auths}
	img, err := build.Run(ctx, b.build)
	if err == nil {
		o.Say(fmt.Sprintf("Successfully built %s\n", shortDigest(img.ID)))
		err = s.nameBuilt(img, b.names, o)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		o.reveal()
		return out.fail(err)
	}
	if b.quiet {
		out.stream(img.ID.String() + "\n")
	}
	return nil
}

// nameBuilt gives the image its names.
func (s *Server) nameBuilt(img *layerstore.Image, names []reference.Named, o *buildOutput) error {
	for _, name := range names {
		if err := s.store.Tag(img.ID.String(), name); err != nil {
			return err
		}
		s.imageEvent(events.ActionTag, img.ID.String(), reference.FamiliarString(name), img)
		o.Say("Successfully tagged " + reference.FamiliarString(name) + "\n")
	}
	return nil
}

// registryConfig reads the credentials for registries that come with a build.
func registryConfig(r *http.Request) (*fetch.Config, error) {
	const header = "X-Registry-Config"
	c, err := fetch.ParseRegistryConfig(r.Header.Get(header))
	if err != nil {
		return nil, badRequest("invalid %s header: %w", header, err)
	}
	return c, nil
}

// buildContext reads the files to build from.
func (s *Server) buildContext(ctx context.Context, r *http.Request, b *buildRequest) (*build.Context, error) {
	switch {
	case isGit(b.remote):
		return nil, notImplemented("building from a Git repository: this host cannot do that, clone it and send the folder")
	case strings.HasPrefix(b.remote, "http://"), strings.HasPrefix(b.remote, "https://"):
		return build.Download(ctx, nil, b.remote, s.store.TempFile)
	case b.remote != "":
		return nil, badRequest("unable to prepare context: remote %q is neither a URL nor a repository", b.remote)
	}
	tar, err := archive.Decompress(r.Body)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return build.ReadContext(ctx, tar, s.store.TempFile)
}

// isGit tells whether a remote context is what Docker takes for a Git repository.
func isGit(remote string) bool {
	url, _, _ := strings.Cut(remote, "#")
	for _, prefix := range []string{"git://", "git@", "github.com/", "ssh://"} {
		if strings.HasPrefix(url, prefix) {
			return true
		}
	}
	return strings.HasPrefix(url, "http") && strings.HasSuffix(url, ".git")
}

// cancelBuild ends the build of an ID.
func (s *Server) cancelBuild(w http.ResponseWriter, r *http.Request) error {
	id := r.URL.Query().Get("id")
	if id == "" {
		return badRequest("build ID not provided")
	}
	s.builds.stop(id)
	w.WriteHeader(http.StatusOK)
	return nil
}

// builds are those that are running.
type builds struct {
	mu     sync.Mutex
	images map[digest.Digest]int // how often each is held
	cancel map[string]context.CancelCauseFunc
}

var errBuildCancelled = errors.New("Build cancelled")

// begin returns the context of a build; "" is no ID to cancel it by.
func (b *builds) begin(ctx context.Context, id string) (context.Context, func(), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	if id == "" {
		return ctx, func() { cancel(nil) }, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel[id] != nil {
		cancel(nil)
		return nil, nil, conflict("build ID %s is in use", id)
	}
	if b.cancel == nil {
		b.cancel = make(map[string]context.CancelCauseFunc)
	}
	b.cancel[id] = cancel
	return ctx, func() {
		cancel(nil)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.cancel, id)
	}, nil
}

func (b *builds) stop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cancel := b.cancel[id]; cancel != nil {
		cancel(errBuildCancelled)
	}
}

// hold keeps an image from being removed until release is called.
func (b *builds) hold(id digest.Digest) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.images == nil {
		b.images = make(map[digest.Digest]int)
	}
	b.images[id]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.images[id]--; b.images[id] == 0 {
			delete(b.images, id)
		}
	}
}

// holds tells whether a build needs an image.
func (b *builds) holds(id digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.images[id] > 0
}

// A buildEngine is this host for one build.
type buildEngine struct {
	s     *Server
	b     *buildRequest
	out   *buildOutput
	auths *fetch.Config
}

// BaseImage implements build.Engine.
func (e *buildEngine) BaseImage(ctx context.Context, ref string, platform *ocispec.Platform) (*layerstore.Image, error) {
	if !e.b.pull {
		img, err := e.s.store.Image(ref)
		if err == nil && (platform == nil || platforms.Only(*platform).Match(imagePlatform(img))) {
			return img, nil
		}
		if err != nil && !errors.Is(err, layerstore.ErrNotFound) {
			return nil, err
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, badRequest("%w", err)
	}
	named = reference.TagNameOnly(named)
	creds, err := e.auths.Credentials(ctx, reference.Domain(named))
	if err != nil {
		return nil, badRequest("credentials for %s: %w", reference.Domain(named), err)
	}
	return e.s.pull(ctx, named, creds, platform, e.out.pulls())
}

// NewContainer implements build.Engine.
func (e *buildEngine) NewContainer(ctx context.Context, img *layerstore.Image, cfg dockerspec.DockerOCIImageConfig) (*containervm.Container, []string, error) {
	host := e.b.host
	body := createBody{Config: new(container.Config), HostConfig: &host}
	if err := convert(&cfg, body.Config); err != nil {
		return nil, nil, err
	}
	body.Image = img.ID.String()
	body.Entrypoint = []string{""} // none, whatever the image has
	body.AttachStdout, body.AttachStderr = true, true
	return e.s.newContainer(ctx, &body, img, containervm.Spec{Transient: true})
}

// Hold implements build.Engine.
func (e *buildEngine) Hold(id digest.Digest) func() { return e.s.builds.hold(id) }

// maxHeld bounds what is kept of a quiet build's output, in bytes: the last.
const maxHeld = 1 << 20

// A buildOutput tells a client what a build does, or a quiet one only if the build fails.
type buildOutput struct {
	stream *progressStream
	quiet  bool
	held   []string
	size   int
}

// Say implements build.Output.
func (o *buildOutput) Say(text string) {
	if !o.quiet {
		o.stream.stream(text)
		return
	}
	o.held = append(o.held, text)
	for o.size += len(text); o.size > maxHeld && len(o.held) > 1; o.held = o.held[1:] {
		o.size -= len(o.held[0])
	}
}

// Complain implements build.Output: standard error is red.
func (o *buildOutput) Complain(text string) { o.Say("\x1b[91m" + text + "\x1b[0m") }

// Built implements build.Output.
func (o *buildOutput) Built(id digest.Digest) {
	if !o.quiet {
		o.stream.send(progressMessage{Aux: struct{ ID digest.Digest }{id}})
	}
}

// pulls is where the progress of a pull is told.
func (o *buildOutput) pulls() *progressStream {
	if !o.quiet {
		return o.stream
	}
	silent := newProgressStream(nil)
	silent.end()
	return silent
}

// reveal tells what a quiet build has not.
func (o *buildOutput) reveal() {
	for _, text := range o.held {
		o.stream.stream(text)
	}
	o.held = nil
}
