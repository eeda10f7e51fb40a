package mount

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/layerstore"
)

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// memSource is an image in memory as a layerstore.Source.
type memSource struct {
	img      v1.Image
	manifest []byte
	config   []byte
}

func newSource(t testing.TB, layers ...testimage.Layer) memSource {
	t.Helper()
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	s := memSource{img: img}
	if s.manifest, err = img.RawManifest(); err != nil {
		t.Fatal(err)
	}
	if s.config, err = img.RawConfigFile(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s memSource) Digest() digest.Digest { return digest.FromBytes(s.manifest) }

func (s memSource) Manifest() ([]byte, ocispec.Descriptor) {
	return s.manifest, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: s.Digest(), Size: int64(len(s.manifest))}
}

func (s memSource) Config() []byte { return s.config }

func (s memSource) Blob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	h, err := v1.NewHash(d.Digest.String())
	if err != nil {
		return nil, err
	}
	l, err := s.img.LayerByDigest(h)
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}

func openStore(t testing.TB, capacity int64) *layerstore.Store {
	t.Helper()
	s, err := layerstore.Open(filepath.Join(t.TempDir(), "store"), layerstore.Options{Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func pull(t testing.TB, s *layerstore.Store, name string, layers ...testimage.Layer) *layerstore.Image {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Pull(t.Context(), newSource(t, layers...), ref, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// view mounts a store until the test ends.
func view(t testing.TB, s *layerstore.Store, o Options) (string, *View) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		oracle.Missing(t, err)
	}
	dir := t.TempDir()
	v, err := Mount(s, dir, o)
	if err != nil {
		oracle.Missing(t, err)
	}
	t.Cleanup(func() {
		select {
		case <-v.Done():
			return
		default:
		}
		if err := v.Unmount(); err != nil {
			t.Errorf("%v: %v", err, v.Users())
			v.Detach()
		}
	})
	return dir, v
}

// entries makes a layer of tar entries; data is what Name has as a file's.
func entries(list ...entry) testimage.Layer {
	return testimage.Layer{CreatedBy: "test", Write: func(w *tar.Writer) error {
		for _, e := range list {
			if err := testimage.Add(w, e.Header, e.data); err != nil {
				return err
			}
		}
		return nil
	}}
}

type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry { return entry{tar.Header{Name: name}, data} }

const (
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// user::rw-, user:1000:r--, group::r--, mask::r--, other::---
	accessACL = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
)

// everything is a layer with one of all that an image can have.
func everything() testimage.Layer {
	xattr := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m["SCHILY.xattr."+pairs[i]] = pairs[i+1]
		}
		return m
	}
	list := []entry{
		{tar.Header{Name: "d/", Mode: 0o2775, Uid: 1000, Gid: 70000}, ""},
		file("d/small", "small\n"), file("d/empty", ""), file("d/bytes-\xff\xfe", "not UTF-8"), file("d/new\nline", "x"),
		file("d/large", strings.Repeat("0123456789abcdef", 50000)),
		file("d/sparse", "begin"+strings.Repeat("\x00", 1<<20)+"middle"+strings.Repeat("\x00", 3<<20)),
		file("d/zeros", strings.Repeat("\x00", 300000)),
		{tar.Header{Name: "d/old", ModTime: time.Unix(-1000, 5)}, "before 1970"},
		{tar.Header{Name: "d/late", ModTime: time.Unix(1<<33, 999_999_999)}, "after 2106"},
		{tar.Header{Name: "d/setuid", Mode: 0o4755, Uid: 1 << 20, Gid: 3 << 20}, "suid"},
		{tar.Header{Name: "d/capable", Mode: 0o755, PAXRecords: xattr("security.capability", capability, "user.note", "n")}, "cap"},
		{tar.Header{Name: "d/acl", Mode: 0o640, PAXRecords: xattr("system.posix_acl_access", accessACL)}, "acl"},
		{tar.Header{Name: "d/manyattrs", PAXRecords: xattr("user.a", strings.Repeat("v", 900), "user.b", "b", "user.empty", "", "security.selinux", "system_u")}, "x"},
		{tar.Header{Name: "d/fast", Typeflag: tar.TypeSymlink, Linkname: "small"}, ""},
		{tar.Header{Name: "d/slow", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 50) + "x"}, ""},
		{tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/small"}, ""},
		{tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		{tar.Header{Name: "d/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0o660}, ""},
		{tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		{tar.Header{Name: "private/", Mode: 0o700}, ""}, file("private/secret", "s"),
		{tar.Header{Name: "many/"}, ""},
	}
	for i := range 500 {
		list = append(list, file(fmt.Sprintf("many/%04d-%s", i, strings.Repeat("n", i%100)), strings.Repeat("x", i)))
	}
	return entries(list...)
}

// changes is a layer over everything.
func changes() testimage.Layer {
	return entries(
		entry{tar.Header{Name: "d/", Mode: 0o755}, ""}, file("d/.wh.empty", ""), file("d/large", "not so large"), file("d/upper", "upper"),
		entry{tar.Header{Name: "many/"}, ""}, file("many/.wh..wh..opq", ""), file("many/one", "1"),
		entry{tar.Header{Name: "d/twice", Typeflag: tar.TypeLink, Linkname: "d/upper"}, ""},
	)
}

// withXattrs makes an archive of all that there is. Of attributes it has the order of the disk.
var withXattrs = []string{"--xattrs", "--xattrs-include=*", "--acls"}

// archive is GNU tar's archive of a folder, independent of its place.
func archive(t testing.TB, dir string, options ...string) []byte {
	t.Helper()
	oracle.Need(t, "tar")
	cmd := exec.Command("tar", append(options, "--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--sort=name",
		"--numeric-owner", "-C", dir, "-cf", "-", ".")...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, errOut.String())
	}
	return out
}

// sameArchives compares two archives and shows what differs.
func sameArchives(t testing.TB, gotName string, got []byte, wantName string, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	lines := func(b []byte) []string {
		cmd := exec.Command("tar", "--numeric-owner", "--full-time", "--xattrs", "--acls", "-tvvf", "-")
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("tar -t: %v", err)
		}
		return strings.Split(string(out), "\n")
	}
	g, w := lines(got), lines(want)
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s differs from %s:\n%s\n%s", gotName, wantName, g[i], w[i])
		}
	}
	t.Fatalf("%s differs from %s: %d and %d entries, %d and %d bytes", gotName, wantName, len(g), len(w), len(got), len(want))
}

// xattrLines lists the extended attributes of all files of a tree.
func xattrLines(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		n, err := unix.Llistxattr(p, buf)
		if err != nil {
			return err
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		name, _ := filepath.Rel(root, p)
		for _, x := range names {
			if x == "" {
				continue
			}
			n, err := unix.Lgetxattr(p, x, buf)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", x, p, err)
			}
			lines = append(lines, fmt.Sprintf("%q %s=%q", name, x, buf[:n]))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
