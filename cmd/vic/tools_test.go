package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/layerstore"
)

// A toolShop is a store with an image of three layers, and the registry that it came from.
type toolShop struct {
	t          *testing.T
	dir, store string
	ref        string
}

// filesLayer has one of everything that the commands must show.
func filesLayer() testimage.Layer {
	return testimage.Layer{CreatedBy: "files", Write: func(w *tar.Writer) error {
		var errs []error
		add := func(h tar.Header, data string) { errs = append(errs, testimage.Add(w, h, data)) }
		add(tar.Header{Name: "files/", Mode: 0o1777, Uid: 10, Gid: 20}, "")
		add(tar.Header{Name: "files/plain", Uid: 70000, Gid: 5}, "plain\n")
		add(tar.Header{Name: "files/setuid", Mode: 0o6755}, "x")
		add(tar.Header{Name: "files/odd", Mode: 0o7644}, "x")
		add(tar.Header{Name: "files/hard", Typeflag: tar.TypeLink, Linkname: "files/plain", Uid: 70000, Gid: 5}, "")
		add(tar.Header{Name: "files/dev", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000}, "")
		add(tar.Header{Name: "files/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, "")
		add(tar.Header{Name: "files/fifo", Typeflag: tar.TypeFifo}, "")
		add(tar.Header{Name: "files/up", Typeflag: tar.TypeSymlink, Linkname: "../../../files/plain", Mode: 0o777}, "")
		add(tar.Header{Name: "files/loop", Typeflag: tar.TypeSymlink, Linkname: "loop", Mode: 0o777}, "")
		add(tar.Header{Name: "files/dir", Typeflag: tar.TypeSymlink, Linkname: "/bin", Mode: 0o777}, "")
		add(tar.Header{Name: "files/esc\x1b[2J", Mode: 0o600}, "")
		add(tar.Header{Name: "files/xattr", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "\x00b"}}, "")
		add(tar.Header{Name: "files/latin-\xe9"}, "")
		return errors.Join(errs...)
	}}
}

func openShop(t *testing.T) *toolShop {
	oracle.Need(t, "docker-registry", "busybox")
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "none"))
	registry, err := testimage.StartRegistry(t.Context(), filepath.Join(dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Stop() })
	base, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, base, filesLayer(), testimage.RandomBytes(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	s := &toolShop{t: t, dir: dir, store: filepath.Join(dir, "store")}
	if s.ref, err = registry.Push(t.Context(), "lib/tools:1", img); err != nil {
		t.Fatal(err)
	}
	s.ok("init", "--capacity", "1G")
	s.ok("pull", s.ref)
	return s
}

func (s *toolShop) run(args ...string) (string, error) {
	out, _, err := vic(s.t, append(args, "--store", s.store)...)
	return out, err
}

func (s *toolShop) ok(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("vic %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *toolShop) path(name string) string { return filepath.Join(s.dir, name) }

// tool runs a program that judges.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	oracle.Need(t, name)
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestLookInside holds what vic shows of an image against what the kernel and GNU's tools show
// of its disk.
func TestLookInside(t *testing.T) {
	s := openShop(t)
	oracle.Root(t)
	raw, mnt := s.path("disk.raw"), s.path("mnt")
	s.ok("convert", s.ref, "--format", "raw", "-o", raw)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "-t", "ext4", "-o", "loop,ro,noload", raw, mnt)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})

	exported := s.path("root.tar")
	s.ok("export", "-o", exported, s.ref)
	tool(t, "tar", "--diff", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", exported, "-C", mnt)
	names := strings.Count(tool(t, "tar", "-tf", exported, "--quoting-style=escape"), "\n")
	if want := strings.Count(tool(t, "find", mnt, "-print0"), "\x00"); names != want {
		t.Errorf("%d names in the tar, %d on the disk", names, want)
	}
	if out := s.ok("export", s.ref, "-o", "-"); out != string(mustRead(t, exported)) {
		t.Error("standard output has another tar")
	}

	for _, path := range []string{"/files", "/", "files/../files/", "files/dir/"} {
		var want []string
		list := tool(t, "ls", "-lAn", "--time-style=+%Y-%m-%d %H:%M:%S", mnt+"/"+strings.ReplaceAll(path, "files/dir", "bin"))
		for line := range strings.Lines(list) {
			if !strings.HasPrefix(line, "total ") {
				want = append(want, strings.Join(strings.Fields(line), " "))
			}
		}
		var got []string
		for line := range strings.Lines(s.ok("ls", "-l", s.ref, path)) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("ls -l %s:\n%s\nls of the disk:\n%s", path, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if got := s.ok("ls", s.ref, "files/dir"); got != tool(t, "ls", "-A", mnt+"/bin") {
		t.Errorf("ls: %s", got)
	}
	if got := s.ok("ls", "-l", s.ref, "files/dir"); !strings.HasPrefix(got, "lrwxrwxrwx 1 0 0 ") || !strings.HasSuffix(got, " files/dir -> /bin\n") {
		t.Errorf("ls -l of a symlink: %s", got)
	}
	if got := s.ok("cat", s.ref, "/files/up", "files/hard"); got != "plain\nplain\n" {
		t.Errorf("cat: %q", got)
	}
	for path, want := range map[string]string{
		"/files/loop": "too many levels of symbolic links", "/files": "is a directory", "/files/null": "is a char, not a file",
		"/nope": "does not exist", "files/plain/..": "not a directory",
	} {
		if _, err := s.run("cat", s.ref, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cat %s: %v, want %q", path, err, want)
		}
	}

	var d listing
	if err := json.Unmarshal([]byte(s.ok("ls", "--json", s.ref, "/files")), &d); err != nil || d.Path != "/files" || len(d.Entries) != 13 {
		t.Fatalf("ls --json: %s, %d entries, %v", d.Path, len(d.Entries), err)
	}
	byName := map[string]fileEntry{}
	for _, e := range d.Entries {
		byName[e.Name] = e
		if len(e.RawName) > 0 && string(e.RawName) != "latin-\xe9" {
			t.Errorf("raw name %q", e.RawName)
		}
	}
	if e := byName["dev"]; e.Type != "block" || *e.Major != 259 || *e.Minor != 70000 {
		t.Errorf("device: %+v", e)
	}
	if e := byName["plain"]; e.Links != 2 || e.UID != 70000 || e.Size != 6 || !e.ModTime.Equal(testimage.Epoch) {
		t.Errorf("file: %+v", e)
	}
	if e := byName["xattr"]; string(e.Xattrs["user.a"]) != "\x00b" {
		t.Errorf("xattrs: %+v", e)
	}
	if q := quoted("esc\x1b[2J"); q != `"esc\x1b[2J"` {
		t.Errorf("quoted: %s", q)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDiffCommand(t *testing.T) {
	s := openShop(t)
	var c contents
	if err := json.Unmarshal([]byte(s.ok("ls", "--json")), &c); err != nil || len(c.Images) != 1 || len(c.Layers) != 3 || len(c.Images[0].Layers) != 3 {
		t.Fatalf("ls --json: %+v, %v", c, err)
	}
	chains := c.Images[0].Layers
	top := s.ok("diff", s.ref)
	if !strings.HasPrefix(top, "A /") || strings.Contains(top, "/files") {
		t.Errorf("diff of the top layer: %s", top)
	}
	if got := s.ok("diff", chains[1].String(), s.ref); got != top {
		t.Errorf("diff with the layer below: %s", got)
	}
	back := s.ok("diff", s.ref, chains[1].Encoded()[:20])
	if strings.Count(back, "\n") > strings.Count(top, "\n") || !strings.HasPrefix(back, "D /") {
		t.Errorf("diff the other way: %s", back)
	}
	middle := s.ok("diff", chains[1].String())
	if !strings.HasPrefix(middle, "A /files\nA /files/dev\n") || strings.Count(middle, "\n") != 14 {
		t.Errorf("diff of the layer with files: %s", middle)
	}
	each := s.ok("diff", "--layers", s.ref)
	if strings.Count(each, "layer sha256:") != 3 || !strings.HasSuffix(each, "layer "+chains[2].String()+"\n"+top) {
		t.Errorf("diff --layers: %s", each)
	}
	if got := s.ok("diff", s.ref, s.ref); got != "" {
		t.Errorf("diff with itself: %s", got)
	}
	var d []differences
	if err := json.Unmarshal([]byte(s.ok("diff", "--json", "--layers", s.ref)), &d); err != nil || len(d) != 3 || d[0].From != "" || d[2].From != chains[1] || len(d[1].Changes) != 14 {
		t.Errorf("diff --json: %.500v, %v", d, err)
	}
	if _, err := s.run("diff", "--layers", s.ref, s.ref); exitCode(err) != 2 {
		t.Errorf("diff --layers of two: %v", err)
	}
}

func TestConvert(t *testing.T) {
	oracle.Need(t, "qemu-img", "e2fsck")
	s := openShop(t)
	disk := strings.TrimSpace(s.ok("disk", s.ref))
	for format, driver := range map[string]string{"streamOptimized": "vmdk", "vmdk": "vmdk", "raw": "raw", "qcow2": "qcow2"} {
		out := s.path("disk-" + format)
		s.ok("convert", "--format", format, "-o", out, s.ref)
		tool(t, "qemu-img", "compare", "-q", "-f", "vmdk", "-F", driver, disk, out)
		if format != "raw" {
			tool(t, "qemu-img", "check", "-q", "-f", driver, out)
		}
		if fi, err := os.Stat(out); err != nil || storedBytes(fi) > 20<<20 {
			t.Errorf("%s: %d bytes stored, %v", format, storedBytes(fi), err)
		}
	}
	tool(t, "e2fsck", "-fn", s.path("disk-raw"))
	if got := s.ok("convert", "-o", "-", s.ref); len(got) == 0 || len(got) > 20<<20 {
		t.Errorf("stream: %d bytes", len(got))
	}
	for _, tt := range []struct {
		args []string
		want string
		exit int
	}{
		{[]string{"convert", s.ref}, `required flag(s) "output" not set`, 2},
		{[]string{"convert", s.ref, "-o", "x", "--format", "vhd"}, "use streamOptimized, vmdk, raw or qcow2", 2},
		{[]string{"convert", s.ref, "-o", "-", "--format", "qcow2"}, "name a file", 2},
		{[]string{"convert", s.ref, "-o", "/dev/null"}, "no file", 1},
		{[]string{"export", s.ref, "-o", s.dir}, "no file", 1},
		{[]string{"export", s.ref, "-o", s.path("no/such/dir")}, "no such file", 1},
		{[]string{"ls", "-l"}, "name one", 2},
		{[]string{"ls", "nope"}, "vic pull gets it", 1},
		{[]string{"cat", s.ref}, "requires at least 2 arg", 2},
		{[]string{"check", "--drop"}, "give both", 2},
		{[]string{"nope"}, "unknown command", 2},
		{[]string{"gc", "x"}, "unknown command", 2},
		{[]string{"du", "--nope"}, "unknown flag", 2},
	} {
		if _, err := s.run(tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != tt.exit {
			t.Errorf("vic %s: %v, exit status %d; want %q, %d", strings.Join(tt.args, " "), err, exitCode(err), tt.want, tt.exit)
		}
	}
	t.Setenv("PATH", s.dir)
	if _, err := s.run("convert", "--format", "qcow2", "-o", s.path("x"), s.ref); err == nil || !strings.Contains(err.Error(), "qemu-utils") {
		t.Errorf("without qemu-img: %v", err)
	}
	left, err := filepath.Glob(s.path(".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestCheckRepair mends a store from its registry, and says of damage that it cannot mend whom
// it concerns.
func TestCheckRepair(t *testing.T) {
	oracle.Need(t, "qemu-img", "e2fsck")
	s := openShop(t)
	disk := strings.TrimSpace(s.ok("disk", s.ref))
	extent := strings.TrimSuffix(disk, ".vmdk") + "-delta.vmdk"
	whole := mustRead(t, extent)
	damage := func() {
		t.Helper()
		b := bytes.Clone(whole)
		b[100_000] ^= 1
		if err := os.Chmod(extent, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(extent, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	if out := s.ok("check"); out != "the store is sound\n" {
		t.Errorf("check does not read data: %s", out)
	}
	out, err := s.run("check", "--deep")
	if exitCode(err) != 1 || !strings.Contains(out, "damaged: "+extent) || !strings.Contains(out, "images: "+s.ref+"\n") || !strings.Contains(out, "--repair") {
		t.Errorf("check --deep: %v\n%s", err, out)
	}
	out, err = s.run("check", "--deep", "--json")
	var c checked
	if e := json.Unmarshal([]byte(out), &c); e != nil || err == nil || c.Sound || len(c.Findings) != 1 || len(c.Left) != 1 || c.Left[0].About != layerstore.AboutLayer {
		t.Errorf("check --json: %v, %+v, %v", err, c, e)
	}
	out = s.ok("check", "--deep", "--repair")
	if !strings.Contains(out, "fetched from "+strings.TrimSuffix(s.ref, ":1")) || !strings.HasSuffix(out, "the store is sound\n") {
		t.Errorf("check --repair: %s", out)
	}
	if !bytes.Equal(mustRead(t, extent), whole) {
		t.Error("the disk is another")
	}
	raw := s.path("raw")
	tool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
	tool(t, "e2fsck", "-fn", raw)

	// Damage to metadata is a clear error of each tool.
	for i := range 4096 {
		whole[len(whole)-1-i] ^= 0xff // the grain tables
	}
	damage()
	for _, args := range [][]string{{"ls", s.ref}, {"cat", s.ref, "/bin/busybox"}, {"export", s.ref, "-o", s.path("x")}, {"convert", s.ref, "-o", s.path("x")}, {"diff", s.ref}} {
		if out, err := s.run(args...); exitCode(err) != 1 || err == nil || !strings.Contains(err.Error(), filepath.Base(extent)) && !strings.Contains(err.Error(), "grain") {
			t.Errorf("vic %s on a damaged disk: %v\n%.200s", strings.Join(args, " "), err, out)
		}
	}
	if _, err := os.Stat(s.path("x")); !os.IsNotExist(err) {
		t.Errorf("there is output: %v", err)
	}
	if err := os.RemoveAll(s.path("registry")); err != nil {
		t.Fatal(err)
	}
	out, err = s.run("check", "--deep", "--repair", "--json")
	c = checked{}
	if e := json.Unmarshal([]byte(out), &c); e != nil || err == nil || len(c.Left) == 0 || c.Left[0].Unrepaired == "" {
		t.Errorf("check --repair without registry: %v, %+v, %v", err, c, e)
	}
	out = s.ok("check", "--repair", "--drop")
	if !strings.Contains(out, "dropped image") || !strings.Contains(out, s.ref) {
		t.Errorf("check --drop: %s", out)
	}
	var g sweep
	if err := json.Unmarshal([]byte(s.ok("gc", "--json")), &g); err != nil || g.Layers == nil || len(g.Layers) != 0 {
		t.Errorf("gc: %+v, %v", g, err)
	}
	if out := s.ok("ls"); strings.Contains(out, "tools") {
		t.Errorf("ls: %s", out)
	}
}

// storedBytes is what a file takes on the disk.
func storedBytes(fi os.FileInfo) int64 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fi.Size()
	}
	return st.Blocks * 512
}
