package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sys/unix"
)

// memFile is a file in memory.
func memFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("context", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "context"), nil
}

func TestContext(t *testing.T) {
	reg := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Uname: "data"}
	}
	deep := strings.Repeat("d/", 2000) + "f"
	for _, tt := range []struct {
		name string
		list []tar.Header
		path string // that is there
		err  string
	}{
		{name: "a file", list: []tar.Header{reg("./a/b")}, path: "a/b"},
		{name: "an absolute name", list: []tar.Header{reg("/a/b")}, path: "a/b"},
		{name: "a name that comes back", list: []tar.Header{reg("a/../b")}, path: "b"},
		{name: "a deep file", list: []tar.Header{reg(deep)}, path: deep},
		{name: "a folder after its file", list: []tar.Header{reg("a/b"), dir("a", 0o700)}, path: "a/b"},
		{name: "a file in place of a folder", list: []tar.Header{reg("a/b"), reg("a")}, path: "a"},
		{name: "a name that leads out", list: []tar.Header{reg("../a")}, err: "leads out of the context"},
		{name: "a name that leads out on the way", list: []tar.Header{reg("a/../../b")}, err: "leads out of the context"},
		{name: "a name that is too long", list: []tar.Header{reg(strings.Repeat("d/", 2100) + "f")}, err: "too long"},
		{name: "below a symlink", list: []tar.Header{link("a", "/tmp", tar.TypeSymlink), reg("a/b")}, err: "is in something that is no folder"},
		{name: "a link to nothing", list: []tar.Header{link("a", "b", tar.TypeLink)}, err: "which is no file"},
		{name: "a link that leads out", list: []tar.Header{link("a", "../../etc/passwd", tar.TypeLink)}, err: "leads out of the context"},
		{name: "a link to a folder", list: []tar.Header{dir("b", 0o755), link("a", "b", tar.TypeLink)}, err: "which is no file"},
		{name: "a root that is a file", list: []tar.Header{reg(".")}, err: "root that is no folder"},
		{name: "an unknown type", list: []tar.Header{{Name: "a", Typeflag: 'Z'}}, err: "unknown type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ReadContext(t.Context(), bytes.NewReader(pack(t, tt.list...)), memFile)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, ErrInvalid) {
					t.Fatalf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f, err := c.Open(tt.path)
			if err != nil {
				t.Fatal(err)
			}
			if data, err := io.ReadAll(f); err != nil || string(data) != "data" {
				t.Errorf("%s: %q, %v", tt.path, data, err)
			}
			if err := c.WriteTree(io.Discard, ".", "x"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A tar that is cut short, none, or followed by more than padding.
func TestBrokenContext(t *testing.T) {
	whole := pack(t, files("f="+strings.Repeat("x", 1000))...)
	for name, data := range map[string][]byte{
		"cut short": whole[:700], "no tar": []byte(strings.Repeat("no tar ", 200)),
		"something after it": append(bytes.Clone(whole), make([]byte, maxTail+1)...),
	} {
		if _, err := ReadContext(t.Context(), bytes.NewReader(data), memFile); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadContext(ctx, bytes.NewReader(whole), memFile); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got error %v", err)
	}
}

// A sparse file of GNU tar's is read as what it stands for, and not without measure.
func TestSparseContext(t *testing.T) {
	oracle.Need(t, "tar")
	for _, tt := range []struct {
		size int64
		ok   bool
	}{{1 << 20, true}, {1 << 36, false}} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "f"), tt.size); err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"gnu", "posix"} {
			packed := command(t, "tar", "cS", "--format="+format, "-C", dir, ".")
			c, err := ReadContext(t.Context(), bytes.NewReader(packed), memFile)
			if !tt.ok {
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%d bytes, %s: got error %v", tt.size, format, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if info, err := c.Lstat("f"); err != nil || info.Size() != tt.size {
				t.Errorf("%s: %v, %v", format, info, err)
			}
			c.Close()
		}
	}
}

// FuzzContext reads what claims to be a tar: no panic, and what was read can be walked and written.
func FuzzContext(f *testing.F) {
	// Short ones: the fuzzer shortens what is new for as long as it finds something.
	f.Add(pack(f, files("Dockerfile=FROM x\n", ".dockerignore=*\n")...))
	f.Add(pack(f, append(files("a/b=1"), link("c", "a/b", tar.TypeLink), link("d", "../..", tar.TypeSymlink))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ReadContext(t.Context(), bytes.NewReader(data), memFile)
		if err != nil {
			return
		}
		defer c.Close()
		if err := c.WriteTree(io.Discard, ".", "x"); err != nil && !errors.Is(err, tar.ErrHeader) && !strings.Contains(err.Error(), "archive/tar: ") {
			t.Error(err)
		}
		if err := c.ignore("Dockerfile"); err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "stat ") {
			t.Error(err)
		}
		for _, name := range []string{"Dockerfile", "a/../..", "d/x"} {
			resolve(c, name)
		}
	})
}

// FuzzDockerfile reads Dockerfiles: no panic, and what only changes the configuration does so.
func FuzzDockerfile(f *testing.F) {
	f.Add("# escape=`\nARG a=1\nFROM $a AS x\nENV a=b c=\"d e\"\nLABEL x y\nEXPOSE 80-90/udp $a\nVOLUME [\"/x\"]\nHEALTHCHECK --retries=3 CMD x\nONBUILD RUN x\n")
	f.Add("FROM x\nRUN <<EOF\nx\nEOF\nCOPY --from=y --chown=a:b [\"c\", \"d\"]\nSHELL [\"a\"]\nCMD x\nENTRYPOINT []\nSTOPSIGNAL KILL\nUSER ${a:-b}\nWORKDIR x\nMAINTAINER y\n")
	f.Fuzz(func(t *testing.T, text string) {
		b := &builder{Options: Options{Output: &host{}}, args: newBuildArgs(nil)}
		d, err := b.readDockerfile([]byte(text))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		b.lex = shell.NewLex(d.escape)
		for _, st := range d.stages {
			s := &stage{b: b, args: b.args.forStage()}
			for _, c := range st.Commands {
				e := editor{&s.config, b.lex, s.variables(), b.say}
				if _, err := e.edit(c); err != nil && !errors.Is(err, ErrInvalid) {
					t.Error(err)
				}
			}
			stepOf(s.config, nil)
		}
	})
}

// What URLs lead to is copied as it is, and becomes a context.
func TestDownload(t *testing.T) {
	packed := pack(t, files("Dockerfile=FROM scratch\nCOPY f /x\n", "f=12")...)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/dir/file":
			w.Header().Set("Last-Modified", "Sun, 09 Sep 2001 01:46:40 GMT")
			io.WriteString(w, "hello")
		case "/disposed/":
			w.Header().Set("Content-Disposition", `attachment; filename="../../called"`)
			io.WriteString(w, "hi")
		case "/anonymous/":
			io.WriteString(w, "hi")
		case "/tar":
			w.Write(packed)
		case "/Dockerfile":
			io.WriteString(w, "FROM scratch\nLABEL a=b\n")
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	h := newHost(t)
	img := h.mustBuild(t, Options{}, fmt.Sprintf("FROM scratch\nADD %[1]s/dir/file %[1]s/disposed/ %[1]s/tar /d/\nADD --chown=5 %[1]s/anonymous/ /e\n", srv.URL))
	got := strings.Join(h.listing(t, img), "\n")
	for _, want := range []string{"-rw------- 0/0 5 d/file", "-rw------- 0/0 2 d/called", fmt.Sprintf("-rw------- 0/0 %d d/tar", len(packed)), "-rw------- 5/5 2 e"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in the image:\n%s", want, got)
		}
	}
	for line, want := range map[string]string{
		"/nope /x":        "ADD failed: failed to GET " + srv.URL + "/nope with status 404 Not Found",
		"/anonymous/ /x/": "ADD failed: cannot determine filename for source " + srv.URL + "/anonymous/",
	} {
		if _, err := h.build(t, Options{}, "FROM scratch\nADD "+srv.URL+line+"\n"); err == nil || err.Error() != want {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
	for _, path := range []string{"/tar", "/Dockerfile"} {
		c, err := Download(t.Context(), nil, srv.URL+path, h.store.TempFile)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := Run(t.Context(), Options{Store: h.store, Engine: h, Output: h, Context: c}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Download(t.Context(), nil, srv.URL+"/nope", h.store.TempFile); !errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v", err)
	}
}
