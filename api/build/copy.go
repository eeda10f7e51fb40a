package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"vic/fetch/archive"
	"vic/layerstore"
)

// A source is a file or folder to be copied.
type source struct {
	tree tree
	name string // in the tree, free of symlinks
	base string // what it was called
	info fs.FileInfo
	hash string
	// packed is set for a tar whose content is copied instead of it.
	packed bool
}

// A copying is a COPY or an ADD.
type copying struct {
	name    string // of the instruction
	sources []source
	dest    string
	chown   string
}

// copy is COPY.
func (s *stage) copy(c *instructions.CopyCommand) error {
	switch {
	case c.Chmod != "":
		return needsBuildKit("--chmod")
	case c.Link:
		return needsBuildKit("--link")
	case c.Parents:
		return needsBuildKit("--parents")
	case len(c.ExcludePatterns) > 0:
		return needsBuildKit("--exclude")
	case len(c.SourceContents) > 0:
		return needsBuildKit("heredoc")
	}
	var from tree = s.b.Context
	if c.From != "" {
		img, err := s.source(c.From)
		if err != nil {
			return fmt.Errorf("invalid from flag value %s: %w", c.From, err)
		}
		f, err := s.openRoot(img)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
	}
	cp := &copying{name: "COPY", dest: c.DestPath, chown: c.Chown}
	for _, name := range c.SourcePaths {
		if isURL(name) {
			return invalid("COPY failed: source can't be a URL for COPY")
		}
		list, err := s.find(from, name)
		if err != nil {
			return s.copyFailed("COPY", from, err)
		}
		cp.sources = append(cp.sources, list...)
	}
	return s.place(cp)
}

// add is ADD: as COPY, but of tars their content, and of URLs what they lead to.
func (s *stage) add(c *instructions.AddCommand) error {
	switch {
	case c.Chmod != "":
		return needsBuildKit("--chmod")
	case c.Link:
		return needsBuildKit("--link")
	case c.Checksum != "":
		return needsBuildKit("--checksum")
	case c.KeepGitDir != nil:
		return needsBuildKit("--keep-git-dir")
	case c.Unpack != nil:
		return needsBuildKit("--unpack")
	case len(c.ExcludePatterns) > 0:
		return needsBuildKit("--exclude")
	case len(c.SourceContents) > 0:
		return needsBuildKit("heredoc")
	}
	cp := &copying{name: "ADD", dest: c.DestPath, chown: c.Chown}
	for _, name := range c.SourcePaths {
		if isURL(name) {
			src, err := s.b.download(s.ctx, name, c.DestPath)
			if err != nil {
				return fmt.Errorf("ADD failed: %w", err)
			}
			defer src.tree.(*Context).Close()
			cp.sources = append(cp.sources, src)
			continue
		}
		list, err := s.find(s.b.Context, name)
		if err != nil {
			return s.copyFailed("ADD", s.b.Context, err)
		}
		for _, src := range list {
			if src.packed, err = isTar(src); err != nil {
				return err
			}
			cp.sources = append(cp.sources, src)
		}
	}
	return s.place(cp)
}

// copyFailed says what Docker says of a source that is not there.
func (s *stage) copyFailed(instruction string, from tree, err error) error {
	if from == tree(s.b.Context) && errors.Is(err, fs.ErrNotExist) {
		return invalid("%s failed: file not found in build context or excluded by .dockerignore: %w", instruction, err)
	}
	return fmt.Errorf("%s failed: %w", instruction, err)
}

// openRoot opens the file system of an image; nil is an empty one.
func (s *stage) openRoot(img *layerstore.Image) (*layerstore.FS, error) {
	if img == nil {
		return s.b.Store.RootFS(s.ctx, "")
	}
	return s.b.Store.RootFS(s.ctx, img.Chain())
}

// find looks for what a source names: several if it is a pattern.
func (s *stage) find(t tree, name string) ([]source, error) {
	if clean := path.Clean(name); t == tree(s.b.Context) && (clean == ".." || strings.HasPrefix(clean, "../")) {
		return nil, invalid("forbidden path outside the build context: %s ()", name)
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "/"), "./")
	names := []string{name}
	if isPattern(name) {
		var err error
		if names, err = glob(t, name); err != nil {
			return nil, err
		}
	}
	var list []source
	for _, n := range names {
		src := source{tree: t, base: path.Base(path.Clean("/" + n))}
		var err error
		if src.name, src.info, err = resolve(t, n); err != nil {
			return nil, err
		}
		kind := "file:"
		switch mode := src.info.Mode(); {
		case mode.IsDir():
			kind = "dir:"
		case !mode.IsRegular():
			return nil, invalid("%s is neither a file nor a folder", n)
		}
		hash, err := sum(t, src.name)
		if err != nil {
			return nil, err
		}
		src.hash = kind + hash
		list = append(list, src)
	}
	return list, nil
}

// isTar tells whether a file is a tar, which may be compressed.
func isTar(src source) (bool, error) {
	if !src.info.Mode().IsRegular() {
		return false, nil
	}
	f, err := src.tree.Open(src.name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r, err := archive.Decompress(f)
	if errors.Is(err, archive.ErrCompression) {
		return false, fmt.Errorf("ADD failed: %s: %w. Decompress it before, or copy it with COPY", src.base, err)
	}
	if err != nil {
		return false, nil
	}
	defer r.Close()
	_, err = tar.NewReader(r).Next()
	return err == nil, nil
}

// hash stands for the content of all sources.
func (c *copying) hash() string {
	if len(c.sources) == 1 {
		return c.sources[0].hash
	}
	var all []string
	for _, src := range c.sources {
		all = append(all, src.hash)
	}
	h := sha256.Sum256([]byte(strings.Join(all, ",")))
	return "multi:" + hex.EncodeToString(h[:])
}

// place commits the layer with what is copied.
func (s *stage) place(c *copying) error {
	switch {
	case len(c.sources) == 0:
		return invalid("%s failed: no source files were specified", c.name)
	case len(c.sources) > 1 && !strings.HasSuffix(c.dest, "/"):
		return invalid("When using %s with more than one source file, the destination must be a directory and end with a /", c.name)
	}
	said := c.name
	if c.chown != "" {
		said += " --chown=" + c.chown
	}
	createdBy := append(shellOf(&s.config), "#(nop) "+said+" "+c.hash()+" in "+c.dest+" ")
	if hit, err := s.probe(createdBy); hit || err != nil {
		return err
	}
	dest := c.dest
	if !path.IsAbs(dest) {
		dest = path.Join("/", s.config.WorkingDir, dest)
		if strings.HasSuffix(c.dest, "/") || path.Base(c.dest) == "." {
			dest += "/"
		}
	}
	return s.commitTo(createdBy, func(l *layer) error {
		owner, err := l.ownerOf(c.chown)
		if err != nil {
			return err
		}
		for _, src := range c.sources {
			if err := l.copy(src, dest, owner); err != nil {
				return fmt.Errorf("failed to copy files: %w", err)
			}
		}
		return nil
	})
}

// workdir is WORKDIR, which makes the folder if it is not there.
func (s *stage) workdir(c *instructions.WorkdirCommand) error {
	dir, err := workdir(s.config.WorkingDir, c.Path)
	if err != nil {
		return err
	}
	s.config.WorkingDir = dir
	createdBy := append(shellOf(&s.config), "#(nop) WORKDIR "+dir)
	if hit, err := s.probe(createdBy); hit || err != nil {
		return err
	}
	return s.commitTo(createdBy, func(l *layer) error {
		name, info, err := l.resolve(dir)
		if err != nil {
			return err
		}
		if info != nil && !info.IsDir() {
			return invalid("Cannot mkdir: %s is not a directory", dir)
		}
		return l.mkdir(name, owner{})
	})
}

// commitTo commits a layer upon the image so far that fill fills.
func (s *stage) commitTo(createdBy []string, fill func(*layer) error) error {
	below, err := s.openRoot(s.image)
	if err != nil {
		return err
	}
	defer below.Close()
	return s.commit(createdBy, func(w io.Writer) error {
		l := newLayer(s.ctx, below, w)
		if err := fill(l); err != nil {
			return err
		}
		return l.w.Close()
	})
}

// A cancelWriter ends with its context.
type cancelWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w cancelWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
