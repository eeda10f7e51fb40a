// Package corpus generates images of a given shape: as many layers and files, as large, as
// compressible, with as many whiteouts as asked for. They stand for no real image; they show
// how a pull's time depends on one property while the others stay as they are. The same
// Shape gives the same bytes.
//
//	layer 0    d00/ d00/d00/ d00/d00/f00000000 d00/d00/f00000001 …    100 files a folder,
//	layer 1    … d00/d01/f00000100 …  d00/d00/.wh.f00000042           100 folders a folder
//
// Files are dealt out to the layers in order. A layer above the lowest also has whiteouts of
// files that layers below it have, chosen at random.
package corpus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/layout"
)

// A Shape says what image to generate.
type Shape struct {
	Seed   uint64
	Layers int // 1 to 500
	Files  int // regular files, over all layers; at most 10 million
	Sizes  Sizes
	// Compressible is the share of the files' bytes that a compressor takes away, 0 to 1.
	Compressible float64
	// Whiteouts is how many whiteouts a layer above the lowest has, as a share of the files that
	// it adds: 0 to 0.5.
	Whiteouts   float64
	Compression Compression
}

// Bounds of a Shape.
const (
	maxLayers = 500
	maxFiles  = 10_000_000
	maxBytes  = 1 << 40 // of all files
)

// Check tells what is wrong with a shape.
func (s Shape) Check() error {
	switch {
	case s.Layers < 1 || s.Layers > maxLayers:
		return fmt.Errorf("%d layers: 1 to %d can be made", s.Layers, maxLayers)
	case s.Files < 0 || s.Files > maxFiles:
		return fmt.Errorf("%d files: 0 to %d can be made", s.Files, maxFiles)
	case !(s.Compressible >= 0 && s.Compressible <= 1):
		return fmt.Errorf("compressible share %v: 0 to 1 can be made", s.Compressible)
	case !(s.Whiteouts >= 0 && s.Whiteouts <= 0.5):
		return fmt.Errorf("share of whiteouts %v: 0 to 0.5 can be made", s.Whiteouts)
	case !s.Compression.known():
		return fmt.Errorf("compression %q: gzip, zstd and none can be made", s.Compression)
	}
	return s.Sizes.check(s.Files)
}

// String describes the shape in a few words.
func (s Shape) String() string {
	return fmt.Sprintf("seed %d: %d layers, %d files, sizes %s, %.0f %% compressible, %.0f %% whiteouts, %s",
		s.Seed, s.Layers, s.Files, s.Sizes, 100*s.Compressible, 100*s.Whiteouts, s.Compression)
}

// A Compression is how blobs are compressed: gzip at level 6, as Docker does, zstd at its default
// level, or none. The zero value is gzip.
type Compression string

func (c Compression) known() bool { return c == "" || c == "gzip" || c == "zstd" || c == "none" }

func (c Compression) String() string {
	if c == "" {
		return "gzip"
	}
	return string(c)
}

func (c Compression) mediaType() string {
	switch c.String() {
	case "gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "zstd":
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c.String() {
	case "gzip":
		return gzip.NewWriterLevel(w, 6)
	case "zstd":
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Write makes an OCI layout with the one image in an empty or missing folder.
func Write(ctx context.Context, dir string, s Shape) (layout.Dir, error) {
	if err := s.Check(); err != nil {
		return "", fmt.Errorf("make corpus: %w", err)
	}
	d, err := layout.Create(dir)
	if err == nil {
		err = s.write(ctx, d)
	}
	if err != nil {
		return "", fmt.Errorf("make corpus: %w", err)
	}
	return d, nil
}

func (s Shape) write(ctx context.Context, d layout.Dir) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	layers := s.plan()
	blobs := make([]ocispec.Descriptor, len(layers))
	diffIDs := make([]digest.Digest, len(layers))
	errs := make([]error, len(layers))
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, l := range layers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				blobs[i], diffIDs[i], errs[i] = s.writeLayer(ctx, d, l)
			}
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := firstCause(errs); err != nil {
		return err
	}
	config, err := json.Marshal(s.config(diffIDs))
	if err != nil {
		return err
	}
	return d.AddImage("", config, blobs)
}

// firstCause returns the first error that is not the end of the context, if there is one.
func firstCause(errs []error) error {
	var end error
	for _, err := range errs {
		if errors.Is(err, context.Canceled) {
			end = err
		} else if err != nil {
			return err
		}
	}
	return end
}

func (s Shape) config(diffIDs []digest.Digest) ocispec.Image {
	made := epoch
	cfg := ocispec.Image{
		Created: &made, Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
	for range diffIDs {
		cfg.History = append(cfg.History, ocispec.History{Created: &made, CreatedBy: "corpus, " + s.String()})
	}
	return cfg
}

// epoch is the time of everything here.
var epoch = time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC)

// writeLayer adds a layer's blob and returns the digest of its tar, too.
func (s Shape) writeLayer(ctx context.Context, d layout.Dir, l layer) (blob ocispec.Descriptor, diffID digest.Digest, err error) {
	hash := digest.SHA256.Digester()
	blob, err = d.Add(s.Compression.mediaType(), func(w io.Writer) error {
		z, err := s.Compression.writer(w)
		if err != nil {
			return err
		}
		err = s.writeTar(ctx, io.MultiWriter(z, hash.Hash()), l)
		return errors.Join(err, z.Close())
	})
	return blob, hash.Digest(), err
}

// path returns the name of a file, and its folders with a slash at the end.
func path(file int) (dirs []string, name string) {
	folder := file / perFolder
	upper := fmt.Sprintf("d%02d/", folder/perFolder)
	lower := fmt.Sprintf("%sd%02d/", upper, folder%perFolder)
	return []string{upper, lower}, fmt.Sprintf("f%08d", file)
}

// perFolder is how many files or folders a folder has.
const perFolder = 100

// whiteout returns the name of the entry that removes a file.
func whiteout(file int) string {
	dirs, name := path(file)
	return strings.Join([]string{dirs[1], ".wh.", name}, "")
}
