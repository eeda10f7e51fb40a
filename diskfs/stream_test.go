package diskfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestStream: where a tar ends, and what its data looks like.
func TestStream(t *testing.T) {
	whole := layer{file("a", "1"), file("b", "22")}.tar(t)
	eof := len(whole) - 1024
	for _, tc := range []struct {
		name    string
		tar     []byte
		want    string
		refused string
	}{
		{"as it should be", whole, `a "1" | b "22"`, ""},
		{"nothing at all", nil, ``, ""},
		{"ten kilobytes of zeros", make([]byte, 10240), ``, ""},
		{"no end blocks", whole[:eof], `a "1" | b "22"`, ""},
		{"one end block", whole[:eof+512], `a "1" | b "22"`, ""},
		{"zeros behind the end", append(bytes.Clone(whole), make([]byte, 9999)...), `a "1" | b "22"`, ""},
		{"garbage behind the end", append(bytes.Clone(whole), "garbage"...), `a "1" | b "22"`, ""},
		{"another tar behind the end", append(bytes.Clone(whole), layer{file("c", "")}.tar(t)...), `a "1" | b "22"`, ""},
		{"cut in a header", whole[:1024+100], ``, "unexpected EOF"},
		{"cut in the data", append(bytes.Clone(whole[:1024]), layer{file("c", strings.Repeat("x", 9000))}.tar(t)[:5000]...), ``, "unexpected EOF"},
		{"cut in the padding", whole[:512+100], `a "1"`, ""},
		{"cut behind a name record", layer{file(longName(200), "")}.tar(t)[:1024], ``, ""},
		{"no tar", []byte(strings.Repeat("not a tar ", 200)), ``, "invalid tar header"},
		{"wrong checksum", flip(whole, 10), ``, "invalid tar header"},
		{"gzip", append([]byte("\x1f\x8b\x08"), make([]byte, 600)...), ``, "invalid tar header"},
		{"negative size", layer{rawHeader("a", '0', "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", nil)}.tar(t), ``, "invalid tar header"},
		{"size beyond the end", layer{rawHeader("a", '0', "77777777777\x00", nil)}.tar(t), ``, "unexpected EOF"},
		{"size in base 256", append(rawHeader("a", '0', "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03", nil).raw, rawBytes("abc").raw...), `a "abc"`, ""},
		{"size beyond ext4's limit", layer{rawHeader("a", '0', "\x80\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00", nil)}.tar(t), ``, "the limit is"},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			c := newChain(t, smallDisk)
			r := bytes.NewReader(tc.tar)
			_, err := c.try(r)
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("error %v, want one with %q", err, tc.refused)
				}
				layerCase{refused: tc.refused}.judge(t, nil, [][]byte{tc.tar})
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Len() != 0 {
				t.Errorf("%d bytes left unread: a digest over the stream would be wrong", r.Len())
			}
			got := c.checkReader()
			if got.describe() != tidy(tc.want) {
				t.Errorf("got:\n%swant:\n%s", got.describe(), tidy(tc.want))
			}
			c.check()
			layerCase{}.judge(t, got, [][]byte{tc.tar})
		})
	}
}

// TestReadError: an error of the source comes back as it is, so that a wrong digest that
// is reported in place of io.EOF refuses the layer.
func TestReadError(t *testing.T) {
	wrong := errors.New("digest mismatch")
	tar := layer{file("a", "1")}.tar(t)
	for n := 0; n <= len(tar); n += 256 {
		r := io.MultiReader(bytes.NewReader(tar[:n]), errReader{wrong})
		if _, err := ReadTar(r, io.Discard, nil, Limits{}); !errors.Is(err, wrong) {
			t.Errorf("source fails after %d bytes: error %v", n, err)
		}
	}
	full := errors.New("disk full")
	big := layer{file("a", strings.Repeat("x", 1<<20))}.tar(t)
	if _, err := ReadTar(bytes.NewReader(big), errWriter{full}, nil, Limits{}); !errors.Is(err, full) {
		t.Errorf("stream cannot be written: error %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }

// TestZeros: blocks of zeros take no space in the stream, except short runs inside a file.
func TestZeros(t *testing.T) {
	block := func(b byte, n int) string { return strings.Repeat(string(b), n*BlockSize) }
	for _, tc := range []struct {
		name   string
		body   string
		blocks int64 // in the stream
		extent int   // file extents
	}{
		{"empty", "", 0, 0},
		{"one byte", "x", 1, 1},
		{"one zero byte", "\x00", 0, 0},
		{"all zeros", block(0, 100), 0, 0},
		{"all zeros, odd size", block(0, 100) + "\x00", 0, 0},
		{"leading zeros", block(0, 3) + "x", 1, 1},
		{"trailing zeros", "x" + block(0, 3), 1, 1},
		{"15 blocks of zeros inside", "x" + block(0, 16) + "x", 17, 1},
		{"16 blocks of zeros inside", block('x', 1) + block(0, 16) + "x", 2, 2},
		{"a hole across two reads", block('x', 60) + block(0, 20) + block('y', 1), 61, 2},
		{"short zeros across two reads", block('x', 60) + block(0, 10) + block('y', 1), 71, 1},
		{"a hole of a whole read", block('x', 64) + block(0, 64) + block('y', 64), 128, 2},
		{"many holes", strings.Repeat(block('x', 1)+block(0, 16), 6), 6, 6},
		{"last byte of a block", block(0, 1)[1:] + "x" + block(0, 20), 1, 1},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			c := newChain(t, smallDisk)
			tar := layer{file("f", tc.body)}.tar(t)
			cs, err := ReadTar(bytes.NewReader(tar), io.Discard, nil, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if n := cs.DataSize() / BlockSize; n != tc.blocks {
				t.Errorf("%d blocks in the stream, want %d", n, tc.blocks)
			}
			c.apply(bytes.NewReader(tar))
			c.check()
			f, err := c.fs.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if err != nil || string(got) != tc.body {
				t.Errorf("read %d bytes (%v), want %d others", len(got), err, len(tc.body))
			}
			extents := 0
			for off := int64(0); ; extents++ {
				start, n := f.(*File).Data(off)
				if n == 0 {
					break
				}
				if start < off || n < 0 || start+n > int64(len(tc.body)) {
					t.Fatalf("data at %d, %d bytes", start, n)
				}
				off = start + n
			}
			if extents != tc.extent {
				t.Errorf("%d ranges of data, want %d", extents, tc.extent)
			}
			if tree := c.checkReader(); tree["f"].size != int64(len(tc.body)) {
				t.Errorf("size %d, want %d", tree["f"].size, len(tc.body))
			}
		})
	}
}

// TestTails: bytes behind the end of a file, in its last block, must be zeros: a guest's
// mmap shows them (ext4 does not clear them when it reads).
func TestTails(t *testing.T) {
	c := newChain(t, smallDisk)
	var l layer
	for i := range 200 {
		l = append(l, file(fmt.Sprint("f", i), strings.Repeat("s", 1+i*97)), symlink(fmt.Sprint("l", i), strings.Repeat("t", 60+i)))
	}
	c.apply(bytes.NewReader(l.tar(t)))
	c.apply(bytes.NewReader(append(l[:100:100], file("f3", "short"))[50:].tar(t)))
	c.check()
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	d, err := c.fs.dir(rootInode)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range d.ents {
		in, err := c.fs.inode(e.ino)
		if err != nil {
			t.Fatal(err)
		}
		if in.fastLink() {
			continue
		}
		err = c.fs.extents(e.ino, in, func(r run, _ bool) error {
			p := make([]byte, r.n*BlockSize)
			if _, err := c.disk.ReadAt(p, r.where*BlockSize); err != nil {
				return err
			}
			if tail := p[max(0, in.size()-r.at*BlockSize):]; len(bytes.TrimLeft(tail, "\x00")) > 0 {
				t.Errorf("%s: bytes behind its end", e.name)
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLimits: what ReadTar refuses before it costs anything.
func TestLimits(t *testing.T) {
	sparse := func(size string) item { // GNU's old form: no data at all, one empty map
		return rawHeader("s", 'S', "00000000000\x00", func(h []byte) {
			copy(h[257:], "ustar  \x00")
			copy(h[386:], "00000000000\x0000000000000\x00")
			copy(h[483:], size+"\x00")
		})
	}
	for _, tc := range []struct {
		name string
		l    layer
		lim  Limits
		want string
	}{
		{"entries", layer{file("a", ""), file("b", ""), whiteout("c")}, Limits{Entries: 2}, "more than 2 entries"},
		{"file size", layer{file("a", "12345")}, Limits{FileSize: 4}, "the limit is 4"},
		{"data", layer{file("a", "1"), file("b", strings.Repeat("2", 9000))}, Limits{Data: 3 * BlockSize}, "data in the tar exceeds"},
		{"names", layer{file("a", ""), symlink("b", longName(200))}, Limits{Names: 100}, "names in the tar exceed"},
		{"xattrs", layer{file("a", "").xattr("user.x", longName(200))}, Limits{Names: 100}, "names in the tar exceed"},
		{"whiteouts", layer{whiteout(longName(200))}, Limits{Names: 100}, "names in the tar exceed"},
		{"holes", layer{file("a", "1"), sparse("07777777777")}, Limits{}, ""},
		{"holes of one file", layer{sparse("77777777777")}, Limits{Holes: 1 << 20}, "holes in the tar exceed"},
		{"holes of all files", layer{sparse("00004000000"), sparse("00004000000")}, Limits{Holes: 1 << 20}, "holes in the tar exceed"},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			_, err := ReadTar(bytes.NewReader(tc.l.tar(t)), io.Discard, nil, tc.lim)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := ReadTar(bytes.NewReader(layer{{h: tar.Header{Typeflag: tar.TypeReg, Name: "a"}}}.tar(t)), io.Discard, nil, Limits{}); err != nil {
		t.Error(err)
	}
}

func flip(p []byte, at int) []byte {
	p = bytes.Clone(p)
	p[at] ^= 1
	return p
}
