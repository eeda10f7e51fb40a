package containervm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/fetch/archive"
	"vic/layerstore"
	"vic/tether/wire"
)

// tarOf makes a tar of names: "d/" is a folder, "l>to" a symlink, "l=to" a hard link, "f:text" a file.
func tarOf(t *testing.T, names ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := tar.Header{Name: name, Mode: 0o644, Uid: 7, Format: tar.FormatPAX}
		text := ""
		if to, from, ok := strings.Cut(name, ">"); ok {
			h.Name, h.Linkname, h.Typeflag = to, from, tar.TypeSymlink
		} else if to, from, ok := strings.Cut(name, "="); ok {
			h.Name, h.Linkname, h.Typeflag = to, from, tar.TypeLink
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o2750
		} else {
			h.Name, text, _ = strings.Cut(name, ":")
			h.Size = int64(len(text))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// newDiskSite is a site whose containers have disks, of an image with these files.
func newDiskSite(t *testing.T, names ...string) (*site, digest.Digest) {
	t.Helper()
	s := newSite(t)
	store := s.o.Volumes
	s.o.Disks = store
	s.reopen()
	a, err := archive.FromTar(t.Context(), tarOf(t, names...), store.TempFile, nil, func(diffID digest.Digest) ([]byte, error) {
		return json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	src, err := a.Entries()[0].Resolve(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Pull(t.Context(), src, nil, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, img.ID
}

// sees is what a path of a container has: names in the tar, with the texts of files.
func sees(t *testing.T, c *Container, path string) string {
	t.Helper()
	_, r, err := c.ReadPath(t.Context(), path)
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	return tarText(t, r)
}

func tarText(t *testing.T, from io.Reader) string {
	t.Helper()
	var got []string
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if err == io.EOF {
			return strings.Join(got, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			h.Name += ":" + string(text)
		case tar.TypeSymlink:
			h.Name += ">" + h.Linkname
		case tar.TypeLink:
			h.Name += "=" + h.Linkname
		}
		got = append(got, h.Name)
	}
}

// volumeText is what is in a volume.
func (s *site) volumeText(name string) string {
	s.t.Helper()
	f, err := s.o.Volumes.VolumeFS(s.t.Context(), name)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if err := f.WriteTar(&b); err != nil {
		s.t.Fatal(err)
	}
	return tarText(s.t, &b)
}

var imageFiles = []string{"etc/passwd:user:x:1000:1000::/:/bin/sh\n", "data/", "data/file:image", "data/inner/", "data/inner/deep:deep", "data/hard=data/file", "out>data/inner", "plain/f:f", "ro/f:ro"}

// A container that never ran shows its volumes as docker has filled them by then, and what is copied in goes where the guest
// would put it.
func TestCopyIntoVolumes(t *testing.T) {
	s, image := newDiskSite(t, imageFiles...)
	spec := Spec{ImageID: image, Args: []string{"sleep"}, User: "user", Volumes: []VolumeMount{
		{Name: "data", Target: "/data"}, {Name: "inner", Target: "/data/inner"}, {Name: "made", Target: "/not/there"}, {Name: "bare", Target: "/plain", NoCopy: true}, {Name: "readonly", Target: "/ro", ReadOnly: true},
	}}
	c := s.create(spec)
	reads := func(path, want string) {
		t.Helper()
		if got := sees(t, c, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}

	reads("/data", "data/ data/file:image data/hard=data/file data/inner/ data/inner/deep:deep")
	reads("/out/deep", "deep:deep")
	reads("/not", "not/ not/there/")
	reads("/plain", "plain/")
	reads("/ro", "ro/ ro/f:ro")
	if got := s.volumeText("data"); got != "./" {
		t.Errorf("reading has written %s", got)
	}
	if st, err := c.StatPath(t.Context(), "/not"); err != nil || !st.Mode.IsDir() {
		t.Errorf("a folder on the way to a mount: %+v, %v", st, err)
	}
	if st, err := c.StatPath(t.Context(), "/data"); err != nil || st.Mode.Perm() != 0o750 {
		t.Errorf("a volume to be filled: %+v, %v", st, err)
	}

	writes := func(dest string, o WriteOptions, want string, names ...string) {
		t.Helper()
		err := c.WritePath(t.Context(), dest, o, tarOf(t, names...))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("to %s: %v, want %q", dest, err, want)
		}
	}
	writes("/data", WriteOptions{}, "", "file:mine", "new:new")
	if got := s.volumeText("data"); got != "./ file:mine hard:image inner/ inner/deep:deep new:new" {
		t.Errorf("filled and written: %s", got)
	}
	f, err := s.o.Volumes.VolumeFS(t.Context(), "data")
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat(".")
	if err != nil || info.Mode().Perm() != 0o750 || info.Mode()&fs.ModeSetgid == 0 {
		t.Errorf("the folder of the volume: %v, %v", info.Mode(), err)
	}
	f.Close()
	reads("/data", "data/ data/file:mine data/hard:image data/inner/ data/inner/deep:deep data/new:new")
	// Where links lead, those of the tar itself too, and several file systems in one tar.
	writes("/", WriteOptions{}, "", "out/a:a", "not/there/b:b", "tmp/c:c", "data/to>/plain", "data/to/d:d", "plain/gone/", "plain/gone/x:x", "plain/gone>/tmp", "plain/gone/e:e")
	for volume, want := range map[string]string{"inner": "./ a:a deep:deep", "made": "./ b:b", "bare": "./ d:d gone>/tmp"} {
		if got := s.volumeText(volume); got != want {
			t.Errorf("volume %s: %s, want %s", volume, got, want)
		}
	}
	reads("/tmp", "tmp/ tmp/c:c tmp/e:e")
	reads("/", "/ /data/ /data/file:mine /data/hard:image /data/inner/ /data/inner/a:a /data/inner/deep:deep /data/new:new /data/to>/plain /etc/ /etc/passwd:user:x:1000:1000::/:/bin/sh\n /out>data/inner "+
		"/plain/ /plain/d:d /plain/gone>/tmp /ro/ /ro/f:ro /tmp/ /tmp/c:c /tmp/e:e /not/ /not/there/ /not/there/b:b")
	writes("/data", WriteOptions{Own: true}, "", "owned:o")
	if f, err = s.o.Volumes.VolumeFS(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	var owned bytes.Buffer
	if err := f.WriteTree(&owned, "owned", "owned"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if h, err := tar.NewReader(&owned).Next(); err != nil || h.Uid != 1000 {
		t.Errorf("owner %+v, %v", h, err)
	}

	// What is refused changes nothing.
	writes("/ro", WriteOptions{}, "mounted volume is marked read-only", "x:x")
	writes("/", WriteOptions{}, "read-only file system", "ro/x:x", "data/lost:x")
	writes("/", WriteOptions{}, "device or resource busy", "data:x")
	writes("/", WriteOptions{}, "device or resource busy", "not:x")
	writes("/", WriteOptions{}, "invalid cross-device link", "data/x=etc/passwd")
	writes("/", WriteOptions{KeepKinds: true}, "cannot overwrite directory", "data/inner/", "etc:x")
	writes("/", WriteOptions{}, "not a directory", "data/file/x:x")
	writes("/data/nope", WriteOptions{}, "Could not find the file /data/nope in container", "x:x")
	reads("/data/lost", "Could not find the file /data/lost in container "+c.id)

	// Once it has run, an empty volume is empty.
	ran := s.run(spec)
	if err := ran.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	c = ran
	reads("/ro", "ro/")
}

// Part of a volume, a read-only root file system, and an unfinished copy that a guest left.
func TestCopyIntoParts(t *testing.T) {
	s, image := newDiskSite(t, imageFiles...)
	s.volume("data")
	if err := s.o.Volumes.ApplyToVolume(t.Context(), "data", tarOf(t, "sub/", "sub/f:f", "abs>/sub")); err != nil {
		t.Fatal(err)
	}
	s.volume("begun")
	if err := s.o.Volumes.ApplyToVolume(t.Context(), "begun", tarOf(t, wire.Copying+":", "half:ha")); err != nil {
		t.Fatal(err)
	}
	c := s.create(Spec{ImageID: image, Args: []string{"sleep"}, ReadOnlyRoot: true, Volumes: []VolumeMount{
		{Name: "data", Target: "/sub", Subpath: "sub"}, {Name: "data", Target: "/file", Subpath: "sub/f"}, {Name: "data", Target: "/none", Subpath: "none"}, {Name: "begun", Target: "/data"},
	}})
	for _, tt := range []struct{ path, want string }{
		{"/sub", "sub/ sub/f:f"}, {"/file", "file:f"}, {"/data", filledData}, {"/none", "cannot access path none: no such file or directory"},
	} {
		if got := sees(t, c, tt.path); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.path, got, tt.want)
		}
	}
	for _, tt := range []struct{ dest, name, want string }{
		{"/sub", "g:g", ""}, {"/data", "g:g", ""}, {"/", "x:x", "container rootfs is marked read-only"}, {"/file", "x:x", "extraction point is not a directory"},
	} {
		err := c.WritePath(t.Context(), tt.dest, WriteOptions{}, tarOf(t, tt.name))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("to %s: %v, want %q", tt.dest, err, tt.want)
		}
	}
	if got := s.volumeText("data"); got != "./ abs>/sub sub/ sub/f:f sub/g:g" {
		t.Errorf("data: %s", got)
	}
	if got := s.volumeText("begun"); got != "./ file:image g:g hard=file inner/ inner/deep:deep" {
		t.Errorf("an unfinished copy: %s", got)
	}
}

// What is on the host is not in the disk under its place.
func TestCopyIntoBinds(t *testing.T) {
	s, image := newDiskSite(t, imageFiles...)
	s.o.Hypervisor = &sharingRack{s.rack, nil}
	s.reopen()
	host := t.TempDir()
	c := s.create(Spec{ImageID: image, Args: []string{"sleep"}, Binds: []BindMount{{Source: host, Target: "/data"}}})
	want := " is in " + host + " of the host while the container runs"
	for _, path := range []string{"/data", "/data/file"} {
		if got := sees(t, c, path); !strings.Contains(got, want) {
			t.Errorf("%s: %s", path, got)
		}
	}
	if err := c.WritePath(t.Context(), "/", WriteOptions{}, tarOf(t, "data/x:x")); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("write: %v", err)
	}
}

const filledData = "data/ data/file:image data/hard=data/file data/inner/ data/inner/deep:deep"

// Who has a volume when others copy, and who waits for whom.
func TestCopyBesideVMs(t *testing.T) {
	s, image := newDiskSite(t, append(slices.Clone(imageFiles), "v0/big:"+strings.Repeat("x", 4<<20))...)
	s.volume("data")
	with := func(volume string) Spec {
		spec := sleeper(volume)
		spec.ImageID = image
		return spec
	}
	copier, other := s.create(with("data")), s.create(with("data:ro"))
	write := func(text string) error {
		return copier.WritePath(t.Context(), "/v0", WriteOptions{}, tarOf(t, "f:"+text))
	}
	if err := write("1"); err != nil {
		t.Fatal(err)
	}

	// Beside a reader there may be others who read; beside a writer nobody.
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sees(t, copier, "/v0/f"); got != "f:1" {
		t.Errorf("beside a VM that reads: %s", got)
	}
	wantError(t, write("2"), ErrConflict, "volume data is in use by running container "+other.Info().Name)
	if err := other.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	writer := s.run(with("data"))
	_, _, err := copier.ReadPath(t.Context(), "/v0/f")
	wantError(t, err, ErrConflict, "volume data is in use by running container "+writer.Info().Name)
	wantError(t, write("2"), ErrConflict, "volume data is in use by running container")
	if got := sees(t, copier, "/plain"); got != "plain/ plain/f:f" {
		t.Errorf("what is not in the volume: %s", got)
	}
	if err := writer.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}

	// Who reads has lost when a VM takes the volume to write, or when somebody writes it without one.
	for name, take := range map[string]func() error{
		"VM": func() error { return writer.Start(t.Context()) }, "copy": func() error { return write("3") },
	} {
		if err := writer.Kill(t.Context(), 9); err != nil && !errors.Is(err, ErrNotRunning) {
			t.Fatal(err)
		}
		_, r, err := other.ReadPath(t.Context(), "/v0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		if err := take(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := io.Copy(io.Discard, r); err == nil || !strings.Contains(err.Error(), "while its files were read") {
			t.Errorf("%s: the reader ended with %v", name, err)
		}
		r.Close()
	}
	if err := writer.Kill(t.Context(), 9); err != nil && !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}

	// A VM waits for who writes.
	release, err := s.holdToWrite(t.Context(), []string{"data"})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- writer.Start(t.Context()) }()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.holdToWrite(gone, []string{"data"}); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up waiting: %v", err)
	}
	select {
	case err := <-started:
		t.Errorf("a VM took a volume that is written: %v", err)
	default:
	}
	release()
	if err := <-started; err != nil {
		t.Error(err)
	}
	if err := writer.Kill(t.Context(), 9); err != nil {
		t.Fatal(err)
	}

	// Many at once, over two volumes in different order.
	s.volume("more")
	var wg sync.WaitGroup
	for i, names := range [][]string{{"data", "more"}, {"more", "data"}, {"data"}, {"more"}} {
		c := s.create(with(names[0]))
		c.spec.Volumes = append(c.spec.Volumes, VolumeMount{Name: names[len(names)-1], Target: "/w/" + fmt.Sprint(i)})
		wg.Go(func() {
			for n := range 3 {
				if err := c.WritePath(t.Context(), "/", WriteOptions{}, tarOf(t, fmt.Sprintf("v0/%d-%d:x", i, n), fmt.Sprintf("w/%d/%d:x", i, n))); err != nil && !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.Manager.volumes.Lock()
	defer s.Manager.volumes.Unlock()
	if len(s.copies) > 0 || len(s.holders) > 0 {
		t.Errorf("left over: %v, %v", s.copies, s.holders)
	}
}

// guestsDisks are disks that only guests read.
type guestsDisks struct{ Disks }

func (guestsDisks) ContainerFS(context.Context, string) (*layerstore.FS, error) {
	return nil, refuse(ErrNotImplemented, "only its guest reads it")
}

// A container whose own disk cannot be read shows its volumes.
func TestViewWithoutRoot(t *testing.T) {
	s, image := newDiskSite(t, "var/", "var/lib/", "file:in the root")
	s.o.Disks = guestsDisks{s.o.Disks}
	s.reopen()
	s.volume("data")
	s.volume("inner")
	spec := Spec{ImageID: image, Args: []string{"sleep"}, Volumes: []VolumeMount{{Name: "data", Target: "/var/lib/data"}, {Name: "inner", Target: "/var/lib/data/in"}}}
	c, without := s.create(spec), s.create(Spec{ImageID: image, Args: []string{"sleep"}})
	const reason = "only its guest reads it"
	for _, x := range []struct{ path, want string }{
		{"/var/lib/data/in", ""}, {"/var/lib", reason}, {"/", reason}, {"/file", reason}, {"/var/lib/data/../..", reason},
	} {
		if err := c.WritePath(t.Context(), x.path, WriteOptions{}, tarOf(t, "a:a", "l>/file")); x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("copy to %s: %v, want %q", x.path, err, x.want)
		}
	}
	for path, want := range map[string]string{"/var/lib/data": "data/ data/in/ data/in/a:a data/in/l>/file", "/var/lib/data/in/a": "a:a"} {
		if got := sees(t, c, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for path, c := range map[string]*Container{"/file": c, "/var": c, "/var/lib/data/in/l/": c, "/": without} {
		if got := sees(t, c, path); !strings.Contains(got, reason) {
			t.Errorf("%s is %q", path, got)
		}
	}
	if _, err := c.Export(t.Context()); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("export: %v", err)
	}
}
