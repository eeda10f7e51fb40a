package corpus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/layout"
	"vic/bench/oracle"
)

func write(t *testing.T, s Shape) layout.Dir {
	t.Helper()
	d, err := Write(t.Context(), filepath.Join(t.TempDir(), "image"), s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func manifest(t *testing.T, d layout.Dir) (digest.Digest, ocispec.Manifest) {
	t.Helper()
	desc, err := d.Find("")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(d.Blob(desc.Digest))
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return desc.Digest, m
}

// listed is what GNU tar says of a layer.
type listed struct {
	files, whiteouts, folders int
	bytes                     int64
}

// list lets other programs decompress and list a blob.
func list(t *testing.T, c Compression, blob string) (l listed) {
	t.Helper()
	unpack := map[Compression]string{"gzip": "gzip -dc", "zstd": "zstd -dc", "none": "cat"}[c]
	out, err := exec.Command("sh", "-c", unpack+` <"$1" | tar -tv`, "sh", blob).Output()
	if err != nil {
		t.Fatalf("tar -tv: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatalf("tar -tv: %q", line)
		}
		switch {
		case strings.HasPrefix(f[0], "d"):
			l.folders++
		case strings.HasPrefix(filepath.Base(f[5]), ".wh."):
			l.whiteouts++
		default:
			l.files++
		}
		l.bytes += size
	}
	return l
}

func TestShapeByGNUTar(t *testing.T) {
	oracle.Need(t, "tar", "gzip", "zstd")
	for _, tt := range []struct {
		s    Shape
		want []listed
	}{
		{Shape{Layers: 1, Files: 0, Compression: "none"}, []listed{{}}},
		{Shape{Layers: 3, Files: 300, Sizes: Fixed(1000), Compression: "gzip"}, []listed{{100, 0, 2, 100_000}, {100, 0, 2, 100_000}, {100, 0, 2, 100_000}}},
		{Shape{Layers: 3, Files: 300, Sizes: Fixed(1000), Whiteouts: 0.1, Compression: "zstd"}, []listed{{100, 0, 2, 100_000}, {100, 10, 2, 100_000}, {100, 10, 2, 100_000}}},
		{Shape{Layers: 2, Files: 3, Sizes: Fixed(1), Whiteouts: 0.5, Compression: "none"}, []listed{{1, 0, 2, 1}, {2, 1, 2, 2}}},
		{Shape{Layers: 1, Files: 10_001, Compression: "gzip"}, []listed{{10_001, 0, 2 + 100 + 1, 0}}},
	} {
		t.Run(tt.s.String(), func(t *testing.T) {
			d := write(t, tt.s)
			_, m := manifest(t, d)
			var got []listed
			for _, l := range m.Layers {
				got = append(got, list(t, tt.s.Compression, d.Blob(l.Digest)))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestShapeByUmoci lets umoci verify every digest, and apply the whiteouts.
func TestShapeByUmoci(t *testing.T) {
	oracle.Need(t, "umoci", "skopeo")
	s := Shape{Seed: 3, Layers: 4, Files: 400, Sizes: Fixed(10), Whiteouts: 0.25}
	tagged, bundle := filepath.Join(t.TempDir(), "tagged"), filepath.Join(t.TempDir(), "bundle")
	for _, args := range [][]string{
		{"skopeo", "--insecure-policy", "copy", "oci:" + string(write(t, s)), "oci:" + tagged + ":1"},
		{"umoci", "unpack", "--rootless", "--image", tagged + ":1", bundle},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	files := 0
	err := filepath.WalkDir(filepath.Join(bundle, "rootfs"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	})
	if want := 400 - 3*25; err != nil || files != want {
		t.Errorf("%d files are left, want %d; %v", files, want, err)
	}
}

func TestSameShapeSameBytes(t *testing.T) {
	sizes, err := ParseSizes("lognormal:2KiB,1.5")
	if err != nil {
		t.Fatal(err)
	}
	s := Shape{Seed: 7, Layers: 3, Files: 200, Sizes: sizes, Compressible: 0.5, Whiteouts: 0.1}
	for _, c := range []Compression{"gzip", "zstd", "none"} {
		s.Compression = c
		a, _ := manifest(t, write(t, s))
		b, _ := manifest(t, write(t, s))
		other := s
		other.Seed++
		o, _ := manifest(t, write(t, other))
		if a != b || a == o {
			t.Errorf("%s: manifests %s and %s of one seed, %s of another", c, a, b, o)
		}
	}
}

func TestCompressible(t *testing.T) {
	for _, share := range []float64{0, 0.3, 0.7, 1} {
		for _, c := range []Compression{"gzip", "zstd"} {
			s := Shape{Layers: 1, Files: 20, Sizes: Fixed(200_000), Compressible: share, Compression: c}
			_, m := manifest(t, write(t, s))
			got := 1 - float64(m.Layers[0].Size)/(20*200_000)
			if math.Abs(got-share) > 0.05 {
				t.Errorf("%s takes away %.2f, want %.2f", c, got, share)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	for _, tt := range []struct {
		text             string
		least, mid, most int64 // of 1001 draws; mid is the median, within a tenth
	}{
		{"fixed:4KiB", 4096, 4096, 4096},
		{"uniform:0-1000", 0, 500, 1000},
		{"lognormal:10kB,1", 1, 10240, maxSize},
		{"lognormal:0,1", 0, 0, 0},
	} {
		s, err := ParseSizes(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		rng := rand.New(rand.NewPCG(1, 1))
		var all []int64
		for range 1001 {
			all = append(all, s.draw(rng))
		}
		slices.Sort(all)
		if all[0] < tt.least || all[1000] > tt.most || math.Abs(float64(all[500]-tt.mid)) > float64(tt.mid)/10 {
			t.Errorf("%s: from %d to %d, median %d", tt.text, all[0], all[1000], all[500])
		}
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{"", "4096", "fixed:", "fixed:-1", "fixed:2GiB", "uniform:5", "uniform:9-5", "lognormal:4KiB", "lognormal:4KiB,NaN", "lognormal:4KiB,-1", "lognormal:4KiB,11", "normal:4KiB,1"} {
		if s, err := ParseSizes(text); err == nil || !strings.Contains(err.Error(), "want fixed:SIZE") {
			t.Errorf("sizes %q: %v, %v", text, s, err)
		}
	}
	for _, tt := range []struct {
		s    Shape
		want string
	}{
		{Shape{}, "0 layers"},
		{Shape{Layers: 501}, "501 layers"},
		{Shape{Layers: 1, Files: -1}, "-1 files"},
		{Shape{Layers: 1, Compressible: 1.1}, "compressible"},
		{Shape{Layers: 1, Compressible: math.NaN()}, "compressible"},
		{Shape{Layers: 1, Whiteouts: 0.6}, "whiteouts"},
		{Shape{Layers: 1, Compression: "xz"}, `compression "xz"`},
		{Shape{Layers: 1, Files: 10_000_000, Sizes: Fixed(1 << 20)}, "are more than"},
	} {
		dir := filepath.Join(t.TempDir(), "image")
		_, err := Write(t.Context(), dir, tt.s)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.s, err, tt.want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: something was made", tt.s)
		}
	}
}

func FuzzParseSizes(f *testing.F) {
	for _, text := range []string{"fixed:4KiB", "uniform:0-64kB", "lognormal:4096,2.5", "lognormal:1e3,1e1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSizes(text)
		if err != nil {
			return
		}
		again, err := ParseSizes(s.String())
		if err != nil || again != s {
			t.Errorf("%q is %v, and that %v, %v", text, s, again, err)
		}
		if n := s.draw(rand.New(rand.NewPCG(1, 1))); n < 0 || n > maxSize {
			t.Errorf("%q: a file of %d bytes", text, n)
		}
	})
}

func TestPlanIsBounded(t *testing.T) {
	for seed := range uint64(20) {
		s := Shape{Seed: seed, Layers: 1 + int(seed), Files: int(seed * seed), Whiteouts: 0.5}
		gone := make(map[int]bool)
		end := 0
		for i, l := range s.plan() {
			if l.first != end || l.end < l.first {
				t.Fatalf("%v: layer %d has files %d to %d", s, i, l.first, l.end)
			}
			end = l.end
			for _, f := range l.removed {
				if f >= l.first || gone[f] {
					t.Fatalf("%v: layer %d removes file %d", s, i, f)
				}
				gone[f] = true
			}
		}
		if end != s.Files {
			t.Fatalf("%v: %d files were dealt out", s, end)
		}
	}
}

func TestFill(t *testing.T) {
	s := Shape{Compressible: 1}
	got := s.fill(nil, 1000, rand.New(rand.NewPCG(1, 1)))
	if len(got) != 1000 || !bytes.HasPrefix(got, []byte(text+text)) {
		t.Errorf("%d bytes: %q", len(got), got[:min(len(got), 200)])
	}
}
