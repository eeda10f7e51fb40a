package layerstore

import (
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestExtentSum: the sum of an extent file is that of what is in it, however that came in.
func TestExtentSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 40 {
		path := filepath.Join(t.TempDir(), "extent")
		f, err := createExtentFile(path, i%2 == 0)
		if err != nil {
			t.Fatal(err)
		}
		p := randomBytes(uint64(i), 2<<20)
		at := int64(64 << 10)
		write := func(off, n int64) {
			if _, err := f.WriteAt(p[:n], off); err != nil {
				t.Fatal(err)
			}
		}
		for range rng.IntN(6) {
			n := rng.Int64N(5) * 128 << 10
			write(at, n)
			at += n
		}
		n := rng.Int64N(100000)
		write(at, n)
		at += n
		if rng.IntN(2) == 0 {
			if err := f.PunchHole(rng.Int64N(at), rng.Int64N(1<<20)); err != nil {
				t.Log(err)
			}
		}
		if rng.IntN(2) == 0 {
			write(rng.Int64N(at), 1000)
		}
		write(0, 512)
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.checksum(fi.Size())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := crc32.Checksum(b, castagnoli); got != want {
			t.Errorf("file %d of %d bytes: sum %08x, want %08x", i, len(b), got, want)
		}
	}
}
