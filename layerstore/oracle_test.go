package layerstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vic/bench/oracle"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// checkClean fails the test for whatever Check finds.
func checkClean(t testing.TB, s *Store) {
	t.Helper()
	err := s.Check(t.Context(), CheckOptions{Deep: true}, func(f Finding) {
		t.Errorf("check: %s: %s (%s)", f.Path, f.Problem, f.Advice)
	})
	if err != nil {
		t.Error(err)
	}
}

// rawDisk converts an image's disk to a raw file with qemu-img, which reads the
// whole chain, and holds it against e2fsck.
func rawDisk(t *testing.T, s *Store, img *Image) string {
	t.Helper()
	oracle.Need(t, "qemu-img")
	oracle.Need(t, "e2fsck")
	path, err := s.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	disk := path
	for range 8 { // each opens the whole chain below
		command(t, "qemu-img", "check", "-f", "vmdk", disk)
		var info struct {
			Backing string `json:"full-backing-filename"`
		}
		if err := json.Unmarshal([]byte(command(t, "qemu-img", "info", "-f", "vmdk", "--output=json", disk)), &info); err != nil {
			t.Fatal(err)
		}
		if disk = info.Backing; disk == "" {
			break
		}
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw)
	command(t, "e2fsck", "-fn", raw)
	return raw
}

// mount mounts a raw disk read-only with the kernel.
func mount(t *testing.T, raw string) string {
	t.Helper()
	oracle.Root(t)
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,ro,noload", raw, dir).CombinedOutput()
	if err != nil {
		oracle.Missing(t, fmt.Errorf("mount: %w: %s", err, out))
	}
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

// umociUnpack returns what umoci makes of an image.
func umociUnpack(t *testing.T, m *memImage) string {
	t.Helper()
	oracle.Need(t, "umoci")
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	write := func(name string, b []byte) {
		path := filepath.Join(layout, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// umoci 0.4 knows gzip and plain layers, and believes media types.
	var man ocispec.Manifest
	if err := json.Unmarshal(m.manifest, &man); err != nil {
		t.Fatal(err)
	}
	blobs := [][]byte{m.config}
	for i, l := range man.Layers {
		b := packGzip.pack(t, unpackAll(t, m.blobs[l.Digest]))
		man.Layers[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(b), Size: int64(len(b))}
		blobs = append(blobs, b)
	}
	manifest, err := json.Marshal(man)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range append(blobs, manifest) {
		write("blobs/sha256/"+digest.FromBytes(b).Encoded(), b)
	}
	write("oci-layout", []byte(`{"imageLayoutVersion": "1.0.0"}`))
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{ocispec.AnnotationRefName: "test"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	write("index.json", index)
	bundle := filepath.Join(dir, "bundle")
	command(t, "umoci", "unpack", "--image", layout+":test", bundle)
	return filepath.Join(bundle, "rootfs")
}

func unpackAll(t testing.TB, blob []byte) []byte {
	t.Helper()
	r, err := decompress(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// describeTree returns a line for each file of a tree, with all that an image says
// about it; inode numbers become the first name of the inode.
func describeTree(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if name == "." || name == "lost+found" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && first[st.Ino] == "" {
			first[st.Ino] = name
		}
		line := fmt.Sprintf("%s mode=%o owner=%d:%d mtime=%d.%09d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links=%d/%s size=%d sum=%x", st.Nlink, first[st.Ino], st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %s", target)
		default:
			line += fmt.Sprintf(" links=%d/%s dev=%x", st.Nlink, first[st.Ino], st.Rdev)
		}
		lines = append(lines, line+describeXattrs(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func describeXattrs(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err == syscall.ENOTSUP {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var s string
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprintf(" %s=%x", name, buf[:n])
	}
	return s
}

// sameTrees compares what the kernel shows of an image's disk with umoci's unpack.
func sameTrees(t *testing.T, s *Store, img *Image, m *memImage) {
	t.Helper()
	want := describeTree(t, umociUnpack(t, m))
	got := describeTree(t, mount(t, rawDisk(t, s, img)))
	if len(want) == 0 {
		t.Fatal("umoci unpacked nothing")
	}
	for i := 0; i < max(len(got), len(want)); i++ {
		switch {
		case i >= len(got):
			t.Fatalf("missing: %s", want[i])
		case i >= len(want):
			t.Fatalf("superfluous: %s", got[i])
		case got[i] != want[i]:
			t.Fatalf("line %d\n got %s\nwant %s", i, got[i], want[i])
		}
	}
}
