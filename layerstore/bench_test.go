package layerstore

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// benchTar is a tar of real files: this machine's Go standard library, in a folder
// of the given name.
func benchTar(b *testing.B, name string) []byte {
	b.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip(err)
	}
	out, err := exec.Command("tar", "-C", string(root[:len(root)-1]), "-c", "--sort=name", "--transform=s,^src,"+name+",", "src").Output()
	if err != nil {
		b.Skip(err)
	}
	return out
}

// BenchmarkPull pulls images of real files from memory, with all syncs.
func BenchmarkPull(b *testing.B) {
	size := len(benchTar(b, "src"))
	for _, layers := range []int{1, 4} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			var all []memLayer
			for i := range layers {
				all = append(all, memLayer{tar: benchTar(b, fmt.Sprintf("src%d", i))})
			}
			m := makeImage(b, all...)
			b.SetBytes(int64(size * layers))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s, err := Open(b.TempDir(), Options{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := s.Pull(b.Context(), m, mustName(b, "bench"), PullOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.Close()
				os.RemoveAll(s.Dir()) // or the next one would need memory that the machine has never used
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPullSmall shows what a pull costs besides its bytes: ten layers with a
// file each.
func BenchmarkPullSmall(b *testing.B) {
	var layers []memLayer
	for i := range 10 {
		layers = append(layers, memLayer{tar: makeTar(b, file(fmt.Sprintf("file%d", i), "x"))})
	}
	m := makeImage(b, layers...)
	for b.Loop() {
		b.StopTimer()
		s, err := Open(b.TempDir(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := s.Pull(b.Context(), m, mustName(b, "bench"), PullOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkOpen opens a store of 200 images, and lists them.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := range 200 {
		m := makeImage(b, memLayer{tar: makeTar(b, file("same", "x"))})
		m.change(b, func(cfg *ocispec.Image, _ *ocispec.Manifest) { t := time.Unix(int64(i), 0); cfg.Created = &t })
		if _, err := s.Pull(b.Context(), m, mustName(b, fmt.Sprintf("image%d", i)), PullOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := Open(dir, Options{})
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
	b.Run("images", func(b *testing.B) {
		for b.Loop() {
			if list, err := s.Images(); err != nil || len(list) != 200 {
				b.Fatal(len(list), err)
			}
		}
	})
}
