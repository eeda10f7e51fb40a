package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"vic/diskfs"
)

// deep tells whether a layer is read in full.
func (c *checker) deep(chain digest.Digest) bool {
	return c.o.Deep && (c.only == nil || c.only[chain])
}

// plan finds out how much there is to do.
func (c *checker) plan(chains []digest.Digest) {
	c.progress.TotalLayers = len(chains)
	for _, chain := range chains {
		l := c.records[chain]
		if l == nil || !c.deep(chain) {
			continue
		}
		c.progress.TotalBytes += l.ExtentSize
		if l.Recipe != nil {
			c.progress.TotalBytes += l.Recipe.Skeleton + l.Recipe.Sources + l.TarSize
		}
	}
}

// advance tells of n bytes more.
func (c *checker) advance(n int) {
	c.progress.Bytes += int64(n)
	if c.o.Progress != nil {
		c.o.Progress(c.progress)
	}
}

// Write counts the bytes of a tar.
func (c *checker) Write(p []byte) (int, error) {
	c.advance(len(p))
	return len(p), nil
}

// rebuild makes a layer's tar again from its disk: that it has the diff ID says that
// nothing of the layer was lost.
func (c *checker) rebuild(ctx context.Context, l *Layer) error {
	if l == nil || l.Recipe == nil || !c.deep(l.Chain) {
		return nil
	}
	if c.isLost(l) {
		return nil // and reported
	}
	if err := c.d.writeTar(ctx, l, c); err != nil && ctx.Err() == nil {
		if there, _ := exists(c.d.layer(l.Chain)); there {
			c.layer(l.Chain, c.d.recipe(l.Chain), "the layer's tar cannot be rebuilt: %v", err)
		}
	}
	return ctx.Err()
}

// compareSum reads a file and compares its checksum with that of the record.
func (c *checker) compareSum(ctx context.Context, f *os.File, size int64, sum uint32, damaged damageReport) error {
	got, err := checksum(ctx, countReaderAt{f, c}, size)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		damaged(f.Name(), "%v", err)
	} else if got != sum {
		damaged(f.Name(), "checksum is %08x, %08x in the record", got, sum)
	}
	return nil
}

// A countReaderAt tells of the bytes that are read.
type countReaderAt struct {
	r io.ReaderAt
	c *checker
}

func (r countReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.r.ReadAt(p, off)
	r.c.advance(n)
	return n, err
}

// walk reads the directory tree of an image.
func (c *checker) walk(ctx context.Context, img *Image) error {
	f, err := c.s.FS(img)
	if err != nil {
		return c.walkFailed(ctx, img, err)
	}
	defer f.Close()
	err = fs.WalkDir(f, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			_, err = e.Info()
		}
		if err == nil {
			_, err = f.Xattrs(name)
		}
		if err == nil {
			err = ctx.Err()
		}
		return err
	})
	return c.walkFailed(ctx, img, err)
}

func (c *checker) walkFailed(ctx context.Context, img *Image, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	path, pathErr := c.s.DiskPath(img)
	if pathErr != nil {
		path = c.d.image(img.ID)
	}
	var fe *diskfs.FormatError
	if there, _ := exists(c.d.image(img.ID)); there || errors.As(err, &fe) {
		c.report(Finding{About: AboutFiles, ID: img.ID.String(), Path: path, Problem: fmt.Sprintf("file system: %v", err),
			Advice: "its disks are as they were written: report this as a bug", Images: []string{c.name(img.ID)}})
	}
	return nil
}
