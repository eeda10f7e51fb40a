package diskfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// A recipe is made of every tar that a test applies, and has to give that tar again.
type recipe struct {
	t                 testing.TB
	seen              hash.Hash
	skeleton, sources *os.File
}

func newRecipe(t testing.TB) *recipe {
	t.Helper()
	r := &recipe{t: t, seen: sha256.New()}
	for _, f := range []**os.File{&r.skeleton, &r.sources} {
		var err error
		if *f, err = os.CreateTemp(t.TempDir(), "recipe"); err != nil {
			t.Fatal(err)
		}
		os.Remove((*f).Name())
		t.Cleanup(func() { (*f).Close() })
	}
	return r
}

func (r *recipe) see(tar io.Reader) io.Reader { return io.TeeReader(tar, r.seen) }

// rewind returns the parts from their beginning.
func (r *recipe) rewind() (skeleton, sources io.Reader) {
	return io.NewSectionReader(r.skeleton, 0, 1<<62), io.NewSectionReader(r.sources, 0, 1<<62)
}

func (r *recipe) check(disk io.ReaderAt, capacity int64) {
	r.t.Helper()
	again := sha256.New()
	skeleton, sources := r.rewind()
	if err := RebuildTar(again, skeleton, sources, disk, capacity); err != nil {
		r.t.Fatalf("rebuild tar: %v", err)
	}
	if !bytes.Equal(again.Sum(nil), r.seen.Sum(nil)) {
		r.t.Fatal("the rebuilt tar is another one")
	}
}

// TestRecipeSize: data that a disk has is not in the recipe; data that is replaced in the
// same layer is, since nothing else has it.
func TestRecipeSize(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<16)
	lower := layer{file("a", body), file("b", body)}
	for _, tt := range []struct {
		name  string
		upper layer
		size  int64 // of the sources, no more than
	}{
		{"new", layer{file("c", body)}, 20},
		{"unchanged", layer{file("a", body), file("b", body)}, 20},
		{"changed", layer{file("a", body+"x")}, 20},
		{"replaced in the same layer", layer{file("c", body), file("c", "y")}, int64(len(body)) + 20},
		{"zeros", layer{file("c", strings.Repeat("\x00", 1<<20))}, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, disk, high := formatMem(t, smallDisk)
			high, err := applyMem(t, f, disk, lower.tar(t), high, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var stream bytes.Buffer
			r := newRecipe(t)
			cs, err := ReadTar(bytes.NewReader(tt.upper.tar(t)), &stream, r.skeleton, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			d, err := f.Apply(cs, ApplyOptions{Data: bytes.NewReader(stream.Bytes()), High: high})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.WriteSources(r.sources, bytes.NewReader(stream.Bytes())); err != nil {
				t.Fatal(err)
			}
			if st, err := r.sources.Stat(); err != nil || st.Size() > tt.size {
				t.Errorf("sources of %d bytes (%v), want %d at most", st.Size(), err, tt.size)
			}
		})
	}
}

// FuzzRebuildTar: whatever a recipe says, what it costs is bounded by what the recipe is.
func FuzzRebuildTar(f *testing.F) {
	skeleton := append(binary.AppendUvarint(nil, 3), "abc"...)
	f.Add(binary.AppendUvarint(skeleton, 5000), []byte{2, 0, 20, 2})
	f.Add(binary.AppendUvarint(bytes.Clone(skeleton), 3), []byte{0, 'x', 'y', 'z'})
	f.Add(binary.AppendUvarint(bytes.Clone(skeleton), 1<<40), []byte{1})
	disk := bytes.NewReader(make([]byte, 1<<20))
	f.Fuzz(func(t *testing.T, skeleton, sources []byte) {
		w := &boundedWriter{left: 1 << 20}
		err := RebuildTar(w, bytes.NewReader(skeleton), bytes.NewReader(sources), disk, disk.Size())
		var fe *FormatError
		if err != nil && !errors.As(err, &fe) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errFull) && !strings.Contains(err.Error(), "varint") {
			t.Error(err)
		}
	})
}

var errFull = errors.New("full")

type boundedWriter struct{ left int }

func (w *boundedWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestRecipeSparse: a sparse file has less of the tar than its size.
func TestRecipeSparse(t *testing.T) {
	raw := gnuTar(t, "--sparse", "--format=gnu")
	for _, data := range [][]byte{raw, gnuTar(t, "--sparse", "--format=posix")} {
		if h, err := tar.NewReader(bytes.NewReader(data)).Next(); err != nil || !isSparse(h) {
			t.Fatalf("not sparse: %v, %v", h, err)
		}
		f, disk, high := formatMem(t, smallDisk)
		if _, err := applyMem(t, f, disk, data, high, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
}

// gnuTar is GNU tar's archive of a file with holes.
func gnuTar(t *testing.T, args ...string) []byte {
	t.Helper()
	oracle.Need(t, "tar")
	dir := t.TempDir()
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("begin"), 0)
	f.WriteAt([]byte("middle"), 1<<20)
	f.Truncate(4 << 20)
	f.Close()
	out, err := exec.Command("tar", append(args, "-C", dir, "-cf", "-", "sparse")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
