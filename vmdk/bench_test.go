package vmdk

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkLayerWriter writes, maps and finishes a layer of 256 MiB, from
// pieces as a decompressor gives them and as large as they come.
func BenchmarkLayerWriter(b *testing.B) {
	const size = 256 << 20
	for _, piece := range []int{4 << 10, 32 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", piece>>10), func(b *testing.B) {
			name := filepath.Join(b.TempDir(), "layer")
			data := pattern(piece, "bench")
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				f, err := os.Create(name)
				if err != nil {
					b.Fatal(err)
				}
				w, err := NewLayerWriter(f, 64<<30)
				if err != nil {
					b.Fatal(err)
				}
				for range size / piece {
					if _, err := w.Write(data); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Map(0, 12345, size/grain); err != nil {
					b.Fatal(err)
				}
				if err := w.Finish(); err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCreateExtent makes the delta of a container.
func BenchmarkCreateExtent(b *testing.B) {
	f := createFile(b, filepath.Join(b.TempDir(), "delta"))
	b.ReportAllocs()
	for b.Loop() {
		if err := CreateExtent(f, 64<<30); err != nil {
			b.Fatal(err)
		}
	}
}

// benchLayers is a chain of layers over a base with 256 MiB in it. Each layer
// replaces 40 runs of 4 grains.
func benchLayers(b *testing.B, depth int) []Link {
	b.Helper()
	const capacity, filled = 64 << 30, 256 << 20
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(7, 7))
	var links []Link
	for i := range depth {
		f := createFile(b, filepath.Join(dir, fmt.Sprint(i)))
		w, err := NewLayerWriter(f, capacity)
		if err != nil {
			b.Fatal(err)
		}
		n := int64(filled / grain)
		if i > 0 {
			n = 160
		}
		data := pattern(grain, fmt.Sprint(i))
		for range n {
			if _, err := w.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		if i == 0 {
			err = w.Map(0, 1000, n)
		}
		for j, at := range r.Perm(filled / grain / 4)[:40] {
			if i > 0 && err == nil {
				err = w.Map(int64(j)*4, 1000+int64(at)*4, 4)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			b.Fatal(err)
		}
		links = append([]Link{{memDescriptor(capacity, links), []*Extent{openExtentFile(b, f)}}}, links...)
	}
	return links
}

func BenchmarkReadAt(b *testing.B) {
	const start, filled = 1000 * grain, 256 << 20
	for _, depth := range []int{1, 10, 30} {
		d, err := OpenDisk(benchLayers(b, depth))
		if err != nil {
			b.Fatal(err)
		}
		for _, size := range []int64{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("depth%d/sequential%dKiB", depth, size>>10), func(b *testing.B) {
				p := make([]byte, size)
				off := int64(0)
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := d.ReadAt(p, start+off); err != nil {
						b.Fatal(err)
					}
					off = (off + size) % filled
				}
			})
		}
		b.Run(fmt.Sprintf("depth%d/random4KiB", depth), func(b *testing.B) {
			p := make([]byte, 4096)
			r := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.ReadAt(p, start+r.Int64N(filled/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("depth%d/holes1MiB", depth), func(b *testing.B) {
			p := make([]byte, 1<<20)
			off := int64(0)
			b.SetBytes(1 << 20)
			for b.Loop() {
				if _, err := d.ReadAt(p, 32<<30+off); err != nil {
					b.Fatal(err)
				}
				off = (off + 1<<20) % (16 << 30)
			}
		})
		b.Run(fmt.Sprintf("depth%d/runs", depth), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range d.Runs(0) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkOpenChain opens the files and the disk, and reads a byte.
func BenchmarkOpenChain(b *testing.B) {
	links := benchLayers(b, 30)
	b.ReportAllocs()
	for b.Loop() {
		again := make([]Link, len(links))
		for i, l := range links {
			again[i] = Link{l.Descriptor, []*Extent{openExtentFile(b, l.Extents[0].r.(*os.File))}}
		}
		d, err := OpenDisk(again)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.ReadAt(make([]byte, 1), 1000*grain); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteAt copies grains up into a new delta, one page at a time.
func BenchmarkWriteAt(b *testing.B) {
	links := benchLayers(b, 3)
	f := createFile(b, filepath.Join(b.TempDir(), "delta"))
	p := pattern(4096, "write")
	var d *Disk
	b.SetBytes(4096)
	b.ReportAllocs()
	for off := int64(256 << 20); b.Loop(); off += 4096 {
		if off == 256<<20 {
			b.StopTimer()
			if err := CreateExtent(f, 64<<30); err != nil {
				b.Fatal(err)
			}
			top := Link{memDescriptor(64<<30, links), []*Extent{openExtentFile(b, f)}}
			var err error
			if d, err = OpenDisk(append([]Link{top}, links...)); err != nil {
				b.Fatal(err)
			}
			off = 0
			b.StartTimer()
		}
		if _, err := d.WriteAt(p, 1000*grain+off); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	links := benchLayers(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := links[0].Extents[0].Check(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCOWD sends a layer of 256 MiB as COWD, and beside it the layer's own file as it is.
func BenchmarkCOWD(b *testing.B) {
	links := benchLayers(b, 1)
	d := openDisk(b, links)
	source := links[0].Extents[0]
	c := newCOWD(b, d, 1)
	for _, by := range []struct {
		name string
		r    io.Reader
		size int64
	}{
		{"source", io.NewSectionReader(source.r, 0, source.size), source.size},
		{"COWD", io.NewSectionReader(c, 0, c.Size()), c.Size()},
	} {
		for _, to := range []string{"discard", "file"} {
			b.Run(by.name+"/"+to, func(b *testing.B) {
				f := createFile(b, filepath.Join(b.TempDir(), "out"))
				buf := make([]byte, 1<<20)
				b.SetBytes(by.size)
				b.ReportAllocs()
				for b.Loop() {
					var w io.Writer = struct{ io.Writer }{io.Discard}
					if to == "file" {
						if err := f.Truncate(0); err != nil {
							b.Fatal(err)
						}
						w = struct{ io.Writer }{io.NewOffsetWriter(f, 0)}
					}
					if _, err := by.r.(io.Seeker).Seek(0, io.SeekStart); err != nil {
						b.Fatal(err)
					}
					if n, err := io.CopyBuffer(w, struct{ io.Reader }{by.r}, buf); n != by.size || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			newCOWD(b, d, 1)
		}
	})
	var file bytes.Buffer
	if _, err := c.WriteTo(&file); err != nil {
		b.Fatal(err)
	}
	desc := NewDescriptor("x", d.Capacity(), 1)
	desc.Extents[0].Type = "VMFSSPARSE"
	again := openDisk(b, []Link{{desc, []*Extent{(&memFile{b: file.Bytes()}).extent(b)}}})
	b.Run("readBack", func(b *testing.B) {
		p := make([]byte, 1<<20)
		b.SetBytes(256 << 20)
		for b.Loop() {
			for off := int64(0); off < 256<<20; off += int64(len(p)) {
				if _, err := again.ReadAt(p, 1000*grain+off); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkBlocks reads all that a layer of 256 MiB would write to a device.
func BenchmarkBlocks(b *testing.B) {
	d := openDisk(b, benchLayers(b, 2))
	for top := 1; top <= 2; top++ {
		b.Run(fmt.Sprint("top", top), func(b *testing.B) {
			var n int64
			for b.Loop() {
				n = 0
				for block, err := range d.Blocks(top, 4096) {
					if err != nil {
						b.Fatal(err)
					}
					n += int64(len(block.Data))
				}
			}
			b.SetBytes(n)
		})
	}
}

// BenchmarkWriteStream compresses programs and libraries, on all processors.
func BenchmarkWriteStream(b *testing.B) {
	const size = 128 << 20
	name, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	d := openDisk(b, memDisk(b, size))
	for off := int64(0); off < size; off += int64(len(program)) {
		if _, err := d.WriteAt(program[:min(int64(len(program)), size-off)], off); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.WriteStream(io.Discard, "x", 1); err != nil {
			b.Fatal(err)
		}
	}
}
