package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"

	"vic/layerstore"
)

// A stage is what comes after one FROM, as far as it has been done.
type stage struct {
	b    *builder
	ctx  context.Context // of its steps, which are done by one goroutine
	name string
	args *buildArgs

	image  *layerstore.Image // nil is scratch
	config dockerspec.DockerOCIImageConfig
	author string
	cmdSet bool // by this stage
	busted bool // a step was not in the cache, so none after it is
}

// scratch is the base of nothing.
const scratch = "scratch"

// defaultPath is where commands are looked for if the image does not say.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// imageID is the ID of the image so far, "" if there is none.
func (s *stage) imageID() digest.Digest {
	if s.image == nil {
		return ""
	}
	return s.image.ID
}

// take goes on from an image.
func (s *stage) take(img *layerstore.Image) {
	s.b.hold(img.ID)
	s.image = img
}

// report says what image a step came to.
func (s *stage) report() { s.b.say(" ---> %s\n", shortID(s.imageID().String())) }

// from begins a stage.
func (b *builder) from(ctx context.Context, st *instructions.Stage) (*stage, error) {
	s := &stage{b: b, ctx: ctx, name: st.Name, args: b.args.forStage()}
	expand := expander(b.lex, b.args.forFrom())
	name, err := expand(st.BaseName)
	if err != nil {
		return nil, invalidError{err}
	}
	if name == "" {
		return nil, invalid("base name (%s) should not be blank", st.BaseName)
	}
	platform := b.Platform
	if st.Platform != "" {
		text, err := expand(st.Platform)
		if err != nil {
			return nil, invalidError{err}
		}
		p, err := platforms.Parse(text)
		if err != nil {
			return nil, invalid("failed to parse platform %s: %w", text, err)
		}
		platform = &p
	}
	switch before := b.stageNamed(name); {
	case before != nil && before.image != nil:
		s.take(before.image)
	case before != nil, name == scratch:
	default:
		img, err := b.Engine.BaseImage(ctx, name, platform)
		if err != nil {
			return nil, err
		}
		s.take(img)
	}
	if s.image != nil {
		var img dockerspec.DockerOCIImage
		if err := json.Unmarshal(s.image.RawConfig, &img); err != nil {
			return nil, fmt.Errorf("parse image config: %w", err)
		}
		s.config = img.Config
	}
	if !slices.ContainsFunc(s.config.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		s.config.Env = append(s.config.Env, defaultPath)
	}
	triggers := s.config.OnBuild
	s.config.OnBuild = nil
	return s, s.onBuild(triggers)
}

// onBuild does what the base image wants to be done.
func (s *stage) onBuild(triggers []string) error {
	switch len(triggers) {
	case 0:
		return nil
	case 1:
		s.b.say("# Executing 1 build trigger\n")
	default:
		s.b.say("# Executing %d build triggers\n", len(triggers))
	}
	for _, line := range triggers {
		tree, err := parser.Parse(strings.NewReader(line))
		if err != nil {
			return invalidError{err}
		}
		if len(tree.AST.Children) != 1 {
			return invalid("onbuild trigger should be a single expression")
		}
		c, err := instructions.ParseCommand(tree.AST.Children[0])
		if err != nil {
			return invalidError{err}
		}
		switch c.(type) {
		case *instructions.OnbuildCommand, *instructions.MaintainerCommand: // an image of others' may say so
			return invalid("%s isn't allowed as an ONBUILD trigger", strings.ToUpper(c.Name()))
		}
		if err := s.do(s.ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// source is the image that COPY --from names; nil is an empty one.
func (s *stage) source(name string) (*layerstore.Image, error) {
	if before := s.b.stageNamed(name); before != nil {
		return before.image, nil
	}
	if i, err := strconv.Atoi(name); err == nil {
		switch {
		case i == len(s.b.stages):
			return nil, errors.New("refers to current build stage")
		case i < 0 || i > len(s.b.stages):
			return nil, errors.New("index out of bounds")
		}
		return s.b.stages[i].image, nil
	}
	img, err := s.b.Engine.BaseImage(s.ctx, name, s.b.Platform)
	if err == nil {
		s.b.hold(img.ID)
	}
	return img, err
}
