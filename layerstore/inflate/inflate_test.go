package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"vic/bench/oracle"

	kgzip "github.com/klauspost/compress/gzip"
)

// readAll decompresses with buffers of so many bytes behind the window.
func readAll(r io.Reader, size int) ([]byte, error) {
	z := NewReader(r)
	var all []byte
	buf := make([]byte, Window+size)
	for {
		at := copy(buf, all[max(0, len(all)-Window):])
		n, err := z.Next(buf[:at+size], at)
		all = append(all, buf[at:at+n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if n != size {
			return all, fmt.Errorf("%d bytes without an error, want %d", n, size)
		}
	}
}

func compress(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are contents of many kinds.
func samples(t testing.TB) map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300<<10)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	skewed := make([]byte, 1<<20) // long codes: each byte half as frequent as the one before
	for i := range skewed {
		for skewed[i] = 0; skewed[i] < 40 && rng.Uint32()&1 == 0; {
			skewed[i]++
		}
	}
	periods := []byte{}
	for p := 1; p < 70; p++ {
		periods = append(periods, bytes.Repeat(random[p:2*p], 700/p+3)...)
	}
	far := append(bytes.Clone(random[:Window]), random[:Window]...)
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src/cmd/compile/internal/ssa/rewriteAMD64.go"))
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"empty": nil, "one byte": {7}, "zeros": make([]byte, 1<<20), "random": random, "skewed": skewed,
		"periods": periods, "far": far, "text": source[:min(len(source), 1<<20)], "binary": binary[:min(len(binary), 3<<20)],
		"few": []byte("a"), "no matches": []byte("abcdefgh"),
	}
}

func TestReader(t *testing.T) {
	for name, data := range samples(t) {
		for _, level := range []int{gzip.NoCompression, gzip.HuffmanOnly, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression} {
			z := compress(t, data, level)
			for _, size := range []int{1 << 20, 64 << 10, 777, 1} {
				if size < 700 && len(data) > 100<<10 {
					continue
				}
				got, err := readAll(bytes.NewReader(z), size)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%s, level %d, by %d: %v, %d bytes, want %d", name, level, size, err, len(got), len(data))
				}
			}
			if len(data) > 1<<20 {
				continue
			}
			for _, r := range []io.Reader{iotest.HalfReader(bytes.NewReader(z)), iotest.DataErrReader(bytes.NewReader(z)), iotest.OneByteReader(bytes.NewReader(z))} {
				if got, err := readAll(r, 100<<10); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%s, level %d, read by pieces: %v, %d bytes, want %d", name, level, err, len(got), len(data))
				}
			}
		}
	}
}

// TestForeign: what other programs compress.
func TestForeign(t *testing.T) {
	for _, tool := range [][]string{{"gzip", "-1"}, {"gzip", "-6"}, {"gzip", "-9"}, {"python3", "-c", "import sys,zlib\nfor s in (0,1,2,3,4):\n c=zlib.compressobj(9,8,31,9,s);d=sys.stdin.buffer.read() if s==0 else d;sys.stdout.buffer.write(c.compress(d[:50000])+c.flush(2)+c.compress(d[50000:])+c.flush())"}} {
		oracle.Need(t, tool[0])
		for name, data := range samples(t) {
			cmd := exec.Command(tool[0], tool[1:]...)
			cmd.Stdin = bytes.NewReader(data)
			z, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %v", tool, err)
			}
			want := data
			if tool[0] == "python3" { // a member for each of zlib's strategies
				want = bytes.Repeat(data, 5)
			}
			if got, err := readAll(bytes.NewReader(z), 256<<10); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v of %s: %v, %d bytes, want %d", tool, name, err, len(got), len(want))
			}
		}
	}
}

// TestMembers: several members are one after the other, and none refers to another.
func TestMembers(t *testing.T) {
	a, b := compress(t, []byte(strings.Repeat("first", 1000)), 6), compress(t, []byte("second"), 6)
	for _, tt := range []struct {
		name, want string
		z          []byte
		failure    string
	}{
		{"two", strings.Repeat("first", 1000) + "second", append(bytes.Clone(a), b...), ""},
		{"an empty one between", "secondsecond", bytes.Join([][]byte{b, compress(t, nil, 6), b}, nil), ""},
		{"garbage behind", "second", append(bytes.Clone(b), "garbage behind"...), "no gzip header"},
		{"a piece behind", "second", append(bytes.Clone(b), 0x1f), "unexpected EOF"},
		// A fixed block with the code of length 3, distance 1, as the first of a member.
		{"a match into the member before", "second", append(bytes.Clone(b), 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0), "distance 1, but there are 0 bytes"},
		{"nothing", "", nil, "unexpected EOF"},
		{"no gzip", "", []byte("this is not gzip"), "no gzip header"},
		{"unknown method", "", append([]byte{0x1f, 0x8b, 7, 0}, make([]byte, 20)...), "method 7 is not known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(tt.z), 300)
			if string(got) != tt.want || (err == nil) != (tt.failure == "") || err != nil && !strings.Contains(err.Error(), tt.failure) {
				t.Errorf("got %d bytes and %v, want %d and %q", len(got), err, len(tt.want), tt.failure)
			}
		})
	}
}

// TestDamage: cut anywhere, a stream ends early; with a bit turned over anywhere, it is
// wrong, since its checksum is.
func TestDamage(t *testing.T) {
	data := samples(t)["text"][:8000]
	for _, level := range []int{gzip.NoCompression, gzip.HuffmanOnly, 6} {
		z := compress(t, data, level)
		for n := range z {
			if got, err := readAll(bytes.NewReader(z[:n]), 999); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(data, got) {
				t.Fatalf("level %d, cut at %d of %d: %v", level, n, len(z), err)
			}
		}
		header := 10 + 2 + 5 + 5 + 8
		for i := header * 8; i < len(z)*8; i += 3 {
			bad := bytes.Clone(z)
			bad[i/8] ^= 1 << (i % 8)
			// A bit of the padding before a stored block means nothing.
			if got, err := readAll(bytes.NewReader(bad), 1<<10); err == nil && !bytes.Equal(got, data) {
				t.Fatalf("level %d, bit %d turned over: no error", level, i)
			}
		}
	}
	broken := errors.New("broken")
	z := compress(t, data, 6)
	if _, err := readAll(io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(broken)), 100); !errors.Is(err, broken) {
		t.Errorf("error of the source: %v", err)
	}
	// One that says itself that it ended early has, also where a member ends.
	if _, err := readAll(io.MultiReader(bytes.NewReader(z), iotest.ErrReader(io.ErrUnexpectedEOF)), 100); err != io.ErrUnexpectedEOF {
		t.Errorf("a source that ended early: %v", err)
	}
}

func BenchmarkInflate(b *testing.B) {
	for name, data := range samples(b) {
		if len(data) < 256<<10 {
			continue
		}
		z := compress(b, data, 6)
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			b.Run("ours", func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				buf := make([]byte, Window+256<<10)
				for b.Loop() {
					r := NewReader(bytes.NewReader(z))
					at := 0
					for {
						n, err := r.Next(buf[:at+256<<10], at)
						if err == io.EOF {
							break
						}
						if err != nil {
							b.Fatal(err)
						}
						at = copy(buf, buf[max(0, at+n-Window):at+n])
					}
				}
			})
			b.Run("klauspost", func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				r := new(kgzip.Reader)
				for b.Loop() {
					if err := r.Reset(bytes.NewReader(z)); err != nil {
						b.Fatal(err)
					}
					if _, err := r.WriteTo(io.Discard); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
