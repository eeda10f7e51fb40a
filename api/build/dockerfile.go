package build

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Names in a context.
const (
	defaultFile = "Dockerfile"
	ignoreFile  = ".dockerignore"
)

// maxFile bounds a Dockerfile and a .dockerignore, in bytes, and maxOnBuild how often the former may have ONBUILD: the
// parser's time grows with the square of one after the other.
const (
	maxFile    = 1 << 20
	maxOnBuild = 500
)

// A dockerfile is one that was parsed.
type dockerfile struct {
	args   []instructions.ArgCommand // before the first stage
	stages []instructions.Stage      // up to the target
	escape rune
}

// parse reads the Dockerfile, and takes out of the context what .dockerignore says of the two
// themselves: all else the client leaves out.
func (b *builder) parse() (*dockerfile, error) {
	name := b.File
	if name == "" {
		name = defaultFile
	}
	text, err := b.Context.readFile(name)
	if errors.Is(err, fs.ErrNotExist) && b.File == "" {
		if lower := strings.ToLower(name); b.Context.has(lower) {
			name = lower
			text, err = b.Context.readFile(name)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid("Cannot locate specified Dockerfile: %s", name)
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, invalid("the Dockerfile (%s) cannot be empty", name)
	}
	if err := b.Context.ignore(name); err != nil {
		return nil, err
	}
	return b.readDockerfile(text)
}

// parseFile parses what is one.
func parseFile(text []byte) (*parser.Result, error) {
	if n := bytes.Count(bytes.ToUpper(text), []byte("ONBUILD")); n > maxOnBuild {
		return nil, invalid("%d times ONBUILD, %d are allowed", n, maxOnBuild)
	}
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, invalid("failed to parse Dockerfile: %w", err)
	}
	return tree, nil
}

func (b *builder) readDockerfile(text []byte) (*dockerfile, error) {
	tree, err := parseFile(text)
	if err != nil {
		return nil, err
	}
	d := &dockerfile{escape: tree.EscapeToken}
	if d.stages, d.args, err = instructions.Parse(tree.AST, nil); err != nil {
		return nil, invalidError{err}
	}
	if b.Target != "" {
		last, ok := instructions.HasStage(d.stages, b.Target)
		if !ok {
			return nil, invalid("failed to reach build target %s in Dockerfile", b.Target)
		}
		d.stages = d.stages[:last+1]
	}
	if len(d.stages) == 0 {
		return nil, invalid("No image was generated. Is your Dockerfile empty?")
	}
	end := &d.stages[len(d.stages)-1]
	for _, key := range slices.Sorted(maps.Keys(b.Labels)) {
		end.AddCommand(instructions.NewLabelCommand(key, b.Labels[key], true))
	}
	var warnings strings.Builder
	tree.PrintWarnings(&warnings)
	if warnings.Len() > 0 {
		b.Output.Complain(warnings.String())
	}
	return d, nil
}

// readFile reads a small file, symlinks followed.
func (c *Context) readFile(name string) ([]byte, error) {
	name, info, err := resolve(c, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("%s is not a regular file", name)
	}
	if info.Size() > maxFile {
		return nil, invalid("%s has %d bytes, %d are allowed", name, info.Size(), maxFile)
	}
	f, err := c.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// has tells whether a name is in the context.
func (c *Context) has(name string) bool {
	_, err := c.Lstat(name)
	return err == nil
}

// ignore removes the Dockerfile and .dockerignore if the latter says so.
func (c *Context) ignore(dockerfile string) error {
	text, err := c.readFile(ignoreFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return invalid("%s: %w", ignoreFile, err)
	}
	for _, name := range []string{ignoreFile, strings.TrimPrefix(path.Clean("/"+dockerfile), "/")} {
		match, err := patternmatcher.MatchesOrParentMatches(name, patterns)
		if err != nil {
			return invalid("%s: %w", ignoreFile, err)
		}
		if match {
			c.remove(name)
		}
	}
	return nil
}
