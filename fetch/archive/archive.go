package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch"
)

// A FormatError reports an archive that is not what it should be.
type FormatError struct {
	File string // in the archive; "" for all of it
	Msg  string // how it is wrong
}

func (e *FormatError) Error() string {
	if e.File == "" {
		return "image archive: " + e.Msg
	}
	return fmt.Sprintf("image archive: %s: %s", printable(e.File), e.Msg)
}

// printable is a name of an archive that does no harm to a terminal.
func printable(name string) string {
	if len(name) > 200 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%.200q", name)
	}
	return name
}

func formatErrorf(file, format string, args ...any) error {
	return &FormatError{File: file, Msg: fmt.Sprintf(format, args...)}
}

// Limits of what is read of an archive.
const (
	maxIndex   = 16 << 20 // bytes of index.json or manifest.json
	maxEntries = 4096     // images, and their names
)

// An Archive is some images in a file or a folder. Close it when no blob is wanted any more.
type Archive struct {
	fsys    fs.FS
	closer  io.Closer
	entries []*Entry
}

// An Entry is an image of an archive, perhaps for several platforms.
type Entry struct {
	// Names are the references that the archive gives the image, each with a tag. Layouts of one
	// repository have tags alone, and no name.
	Names []reference.Named

	labels  []string // what the archive calls the image, as it stands there
	resolve func(context.Context, *ocispec.Platform) (*Image, error)
}

// Entries lists the images, in the archive's order.
func (a *Archive) Entries() []*Entry { return a.entries }

// Close lets go of the files. Blobs that are still being read fail.
func (a *Archive) Close() error { return a.closer.Close() }

// Resolve reads and verifies what the archive has of the image, less its layers. Platform is the
// one to choose if there are several, as in fetch.ResolveOptions. The error is a *FormatError, one
// of package fetch's, or that of the file.
func (e *Entry) Resolve(ctx context.Context, platform *ocispec.Platform) (*Image, error) {
	img, err := e.resolve(ctx, platform)
	if err == nil && platform != nil && !platforms.Only(*platform).Match(platforms.Normalize(img.Platform())) {
		err = fmt.Errorf("%w: the image is for %.80q, not %s", fetch.ErrNoPlatform, platforms.Format(img.Platform()), platforms.Format(*platform))
	}
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	return img, nil
}

// Is tells whether ref is what the archive calls the image: a tag alone, or a name, with or
// without what docker leaves out of it.
func (e *Entry) Is(ref string) bool {
	if slices.Contains(e.labels, ref) {
		return true
	}
	named, err := reference.ParseDockerRef(ref)
	return err == nil && slices.ContainsFunc(e.Names, func(n reference.Named) bool { return n.String() == named.String() })
}

// name adds what the archive calls the image.
func (e *Entry) name(label string) error {
	if slices.Contains(e.labels, label) {
		return nil
	}
	named, err := reference.ParseDockerRef(label)
	if err != nil {
		return fmt.Errorf("image name %.80q: %w", label, err)
	}
	e.labels = append(e.labels, label)
	if _, ok := named.(reference.Digested); ok {
		return nil // what a registry calls it, not what it shall be called
	}
	if !slices.ContainsFunc(e.Names, func(n reference.Named) bool { return n.String() == named.String() }) {
		e.Names = append(e.Names, named)
	}
	return nil
}

// open reads the list of images, of whichever kind the archive is.
func open(fsys fs.FS, closer io.Closer) (*Archive, error) {
	a := &Archive{fsys: fsys, closer: closer}
	err := a.readLayout()
	if errors.Is(err, fs.ErrNotExist) {
		err = a.readDocker()
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = formatErrorf("", "neither an OCI image layout nor made by docker save: it has no %s and no %s", ocispec.ImageLayoutFile, dockerManifestFile)
	}
	if err != nil {
		closer.Close() // only read
		return nil, err
	}
	return a, nil
}

// readFile reads a file of at most limit bytes.
func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, formatErrorf(name, "longer than %d bytes", limit)
	}
	return b, nil
}

// missing makes a file that is named, and is not there, the archive's fault.
func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return formatErrorf(name, "is named and not there")
	}
	return err
}
