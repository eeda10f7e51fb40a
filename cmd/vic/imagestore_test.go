package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/layerstore"
	datastore "vic/layerstore/vsphere"
)

// An imageShop is a simulated vSphere with a datastore, beside an image in a registry and in a local store.
type imageShop struct {
	*toolShop
	vsphere *vcsim.Server
	ds      string   // the folder of the datastore
	site    []string // flags
}

func openImageShop(t *testing.T) *imageShop {
	t.Helper()
	s := &imageShop{toolShop: openShop(t)}
	s.ds = s.path("ds")
	if err := os.Mkdir(s.ds, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.vsphere, err = vcsim.Start(t.Context(), vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Dir: s.ds, Type: vcsim.NFS}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.vsphere.Close(); err != nil {
			t.Error(err)
		}
	})
	password, _ := s.vsphere.URL().User.Password()
	t.Setenv("VIC_PASSWORD", password)
	s.site = []string{"--target", s.vsphere.URL().Host, "--user", s.vsphere.URL().User.Username(), "--thumbprint", s.vsphere.Thumbprint(), "--image-store", "ds/images"}
	return s
}

// remote runs a command on the datastore's store.
func (s *imageShop) remote(args ...string) (string, error) {
	out, _, err := vic(s.t, append(args, s.site...)...)
	return out, err
}

func (s *imageShop) remoteOK(args ...string) string {
	s.t.Helper()
	out, err := s.remote(args...)
	if err != nil {
		s.t.Fatalf("vic %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// file is a file of the store on the datastore.
func (s *imageShop) file(elem ...string) string {
	return filepath.Join(append([]string{s.ds, "images"}, elem...)...)
}

// disks are the files of disks, with the times at which they were written.
func (s *imageShop) disks() map[string]time.Time {
	s.t.Helper()
	entries, err := os.ReadDir(s.file("disks"))
	if err != nil {
		s.t.Fatal(err)
	}
	files := map[string]time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			s.t.Fatal(err)
		}
		files[e.Name()] = info.ModTime()
	}
	return files
}

// vch has a VCH pull the image, as vic serve does: through a new local store, whose mirror is the datastore's.
func (s *imageShop) vch(name string) (*datastore.Store, *layerstore.Store) {
	s.t.Helper()
	ctx := s.t.Context()
	password, _ := s.vsphere.URL().User.Password()
	session, err := datastore.Connect(ctx, datastore.Endpoint{Server: s.vsphere.URL().Host, User: s.vsphere.URL().User.Username(), Password: password, Thumbprint: s.vsphere.Thumbprint()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := session.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
	d, err := session.OpenDatastore(ctx, "", "ds", "images")
	if err != nil {
		s.t.Fatal(err)
	}
	images, err := datastore.OpenStore(ctx, d, datastore.StoreOptions{VCH: name})
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.path(name)
	local, err := layerstore.Open(dir, layerstore.Options{Capacity: images.Capacity(), Mirror: images})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := local.Close(); err != nil {
			s.t.Error(err)
		}
	})
	if _, errOut, err := vic(s.t, "pull", "--store", dir, s.ref); err != nil { // the layers alone
		s.t.Fatalf("%v\n%s", err, errOut)
	}
	img, err := local.Image(s.ref)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := images.Publish(ctx, local, img)
	if err != nil {
		s.t.Fatal(err)
	}
	if p.Sent != 0 {
		s.t.Errorf("VCH %s has sent %d bytes of an image that was there", name, p.Sent)
	}
	if err := noteNames(ctx, local, images); err != nil {
		s.t.Fatal(err)
	}
	return images, local
}

// TestImageStore goes through the life of an image store on a datastore as its administrator sees it: filled before there is a VCH, shared,
// looked into, cleaned.
func TestImageStore(t *testing.T) {
	s := openImageShop(t)
	for _, command := range []string{"ls", "gc", "du", "check"} {
		if _, err := s.remote(command); err == nil || !strings.Contains(err.Error(), "there is no image store in [ds] images") {
			t.Errorf("%s without a store: %v", command, err)
		}
	}
	if entries, err := os.ReadDir(s.ds); err != nil || len(entries) != 0 {
		t.Errorf("looking has made %v, %v", entries, err)
	}
	if out := s.remoteOK("pull", s.ref); !strings.Contains(out, "pulled: image ") {
		t.Errorf("pull: %s", out)
	}
	seeded := s.disks()
	if out := s.remoteOK("seed", s.ref); !strings.Contains(out, "up to date") && !strings.Contains(out, "pulled") {
		t.Errorf("seed again: %s", out)
	}
	vch1, local := s.vch("vch1")
	s.vch("vch2")
	for name, at := range s.disks() {
		if !seeded[name].Equal(at) {
			t.Errorf("%s was written by who found the image there", name)
		}
	}

	t.Run("look", func(t *testing.T) {
		var u datastore.Usage
		if err := json.Unmarshal([]byte(s.remoteOK("ls", "--json")), &u); err != nil {
			t.Fatal(err)
		}
		var vchs []string
		for _, img := range u.Images {
			vchs = append(vchs, img.VCH)
			if !slices.Equal(img.Names, []string{s.ref}) || img.Size == 0 {
				t.Errorf("image %+v", img)
			}
		}
		if !slices.Equal(vchs, []string{"_seed", "vch1", "vch2"}) || len(u.Disks) != 4 {
			t.Errorf("VCHs %v, disks %+v", vchs, u.Disks)
		}
		var du remoteUsage
		if err := json.Unmarshal([]byte(s.remoteOK("du", "--json")), &du); err != nil {
			t.Fatal(err)
		}
		if len(du.Images) != 1 || du.Images[0].Own != du.Size || du.Size == 0 || du.Unused != 0 || len(du.Images[0].VCHs) != 3 {
			t.Errorf("du %+v", du)
		}
		for _, args := range [][]string{{"ls", "-l", s.ref, "/files"}, {"ls", "--json", s.ref, "/bin"}, {"cat", s.ref, "/files/plain", "/files/hard"}, {"cat", s.ref, "/bin/busybox"}, {"export", s.ref}} {
			if got, want := s.remoteOK(args...), s.ok(args...); got != want || got == "" {
				t.Errorf("vic %q: %d bytes, of the local store %d", args, len(got), len(want))
			}
		}
		path := strings.TrimSpace(s.remoteOK("disk", s.ref))
		file := filepath.Join(s.ds, strings.TrimPrefix(path, "[ds] "))
		tool(t, "qemu-img", "info", file)
		if got := s.remoteOK("cat", filepath.Base(file)[:20], "/files/plain"); got != "plain\n" {
			t.Errorf("a file of a layer: %q", got)
		}
	})
	t.Run("diff", func(t *testing.T) { testImageStoreDiff(t, s) })
	t.Run("convert", func(t *testing.T) { testImageStoreConvert(t, s) })
	t.Run("mount", func(t *testing.T) { testImageStoreMount(t, s) })
	t.Run("check", func(t *testing.T) { testImageStoreCheck(t, s) })
	t.Run("gc", func(t *testing.T) {
		top := strings.TrimSuffix(strings.TrimSpace(s.remoteOK("disk", s.ref)), ".vmdk")
		top = top[strings.LastIndex(top, "/")+1:]
		put := func(text string, elem ...string) string {
			t.Helper()
			file := s.file(elem...)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		}
		// What two programs are bringing, one of which was killed a day ago.
		coming, dead := top[:64]+"-0123456789ab", top[:64]+"-ba9876543210"
		for _, name := range []string{coming, dead} {
			put("x", "disks", name+"-delta.vmdk")
		}
		put(`["`+coming+`"]`, "vchs", "_seed", "pulls", "base-000000000001.json")
		old := put(`["`+dead+`"]`, "vchs", "_seed", "pulls", "base-000000000002.json")
		long := time.Now().Add(-25 * time.Hour)
		if err := os.Chtimes(old, long, long); err != nil {
			t.Fatal(err)
		}
		if out := s.remoteOK("gc"); out != "deleted  "+dead+"\n1 disks removed, 1B freed\n" {
			t.Errorf("gc: %s", out)
		}
		if err := os.Remove(s.file("vchs", "_seed", "pulls", "base-000000000001.json")); err != nil {
			t.Fatal(err)
		}
		if out := s.remoteOK("gc"); !strings.HasPrefix(out, "deleted  "+coming) {
			t.Errorf("gc: %s", out)
		}
	})
	t.Run("remove", func(t *testing.T) {
		if out := s.remoteOK("rm", s.ref); !strings.Contains(out, "untagged "+s.ref) || !strings.Contains(out, "deleted  sha256:") || strings.Count(out, "\n") != 2 {
			t.Errorf("rm: %s", out)
		}
		if _, err := s.remote("rm", s.ref); err == nil || !strings.Contains(err.Error(), "is of VCH vch1, vch2") {
			t.Errorf("rm of what VCHs have: %v", err)
		}
		if _, err := s.remote("rm", "none"); err == nil || !strings.Contains(err.Error(), "no such image") {
			t.Errorf("rm of what is not there: %v", err)
		}
		s.remoteOK("check", "--deep", "--store", s.path("vch1"))
		img, err := local.Image(s.ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := vch1.Forget(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
		if out := s.remoteOK("gc"); out != "0 disks removed, 0B freed\n" {
			t.Errorf("gc of what vch2 has: %s", out)
		}
		if err := os.RemoveAll(s.file("vchs", "vch2")); err != nil {
			t.Fatal(err)
		}
		if out := s.remoteOK("gc"); !strings.Contains(out, "4 disks removed") {
			t.Errorf("gc: %s", out)
		}
		if out := s.remoteOK("check", "--deep"); !strings.Contains(out, "0 disks of 0 images") {
			t.Errorf("check: %s", out)
		}
	})
}

// testImageStoreDiff has the same told of the datastore as of the local store.
func testImageStoreDiff(t *testing.T, s *imageShop) {
	var layers []differences
	if err := json.Unmarshal([]byte(s.ok("diff", "--json", "--layers", s.ref)), &layers); err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	lowest, middle := layers[0].To.Encoded()[:20], layers[1].To.String()
	for _, args := range [][]string{{s.ref}, {"--json", s.ref}, {"--layers", s.ref}, {"--layers", "--json", s.ref}, {middle}, {lowest}, {middle, s.ref}, {s.ref, lowest}, {"--json", lowest, s.ref}} {
		args = append([]string{"diff"}, args...)
		if got, want := s.remoteOK(args...), s.ok(args...); got != want || got == "" {
			t.Errorf("vic %q:\n%s\nof the local store:\n%s", args, got, want)
		}
	}
	if got := s.remoteOK("diff", s.ref, s.ref); got != "" {
		t.Errorf("diff with itself: %s", got)
	}
	if _, err := s.remote("diff", s.ref, "none"); err == nil || !strings.Contains(err.Error(), "lists what is there") {
		t.Errorf("diff with what is not there: %v", err)
	}
	// What both have is not read.
	before := s.vsphere.Calls()["GET /folder"]
	s.remoteOK("diff", s.ref)
	if n := s.vsphere.Calls()["GET /folder"] - before; n > 60 {
		t.Errorf("%d requests for files", n)
	}
}

// testImageStoreConvert has the disk of an image written in each format, the same as from the local store.
func testImageStoreConvert(t *testing.T, s *imageShop) {
	oracle.Need(t, "qemu-img", "e2fsck")
	local := func(args ...string) string {
		t.Helper()
		out, _, err := vic(t, append(args, "--store", s.path("vch1"))...) // with disks of the same capacity
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for format, driver := range map[string]string{"streamOptimized": "vmdk", "vmdk": "vmdk", "raw": "raw", "qcow2": "qcow2"} {
		got, want := s.path(format+"/disk"), s.path("local-"+format+"/disk")
		for _, name := range []string{got, want} {
			if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out := s.remoteOK("convert", "--json", "--format", format, "-o", got, s.ref)
		if told := local("convert", "--json", "--format", format, "-o", want, s.ref); format != "qcow2" && strings.Replace(told, want, got, 1) != out {
			t.Errorf("%s: told %s, of the local store %s", format, out, told)
		}
		tool(t, "qemu-img", "compare", "-q", "-f", driver, "-F", driver, got, want)
		if format != "raw" {
			tool(t, "qemu-img", "check", "-q", "-f", driver, got)
		}
		if driver == "vmdk" {
			tool(t, "cmp", got, want)
		}
		if left, err := os.ReadDir(filepath.Dir(got)); err != nil || len(left) != 1 {
			t.Errorf("%s: left %v, %v", format, left, err)
		}
	}
	tool(t, "e2fsck", "-fn", s.path("raw/disk"))
	if got, want := s.remoteOK("convert", "-o", "-", s.ref), local("convert", "-o", "-", s.ref); got != want || got == "" {
		t.Errorf("to standard output: %d bytes, of the local store %d", len(got), len(want))
	}
}

// testImageStoreMount compares what the kernel shows of the datastore with what GNU tar unpacks of the local store's export.
func testImageStoreMount(t *testing.T, s *imageShop) {
	oracle.Need(t, "fusermount3")
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		oracle.Missing(t, errors.New("this takes root and /dev/fuse"))
	}
	dir, unpacked := s.path("mount"), s.path("unpacked")
	for _, d := range []string{dir, unpacked} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.ok("export", "-o", s.path("root.tar"), s.ref)
	tool(t, "tar", "-C", unpacked, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-xpf", s.path("root.tar"))
	m := startMounting(t, exec.Command(os.Args[0]), dir, s.site...)
	root := filepath.Join(dir, "images", filepath.FromSlash(s.ref), "rootfs")
	listing := func(root string) string {
		t.Helper()
		return tool(t, "find", root, "-printf", "%P %M %n %U %G %s %T@ %l\n")
	}
	lines := func(text string) []string { return slices.Sorted(strings.Lines(text)) }
	got, want := lines(listing(root)), lines(listing(unpacked))
	for i := range min(len(got), len(want)) {
		if strings.HasPrefix(want[i], " d") || strings.Fields(want[i])[1][0] == 'd' { // sizes of folders are of the file system that has them
			continue
		}
		if got[i] != want[i] {
			t.Errorf("mounted %s, unpacked %s", got[i], want[i])
		}
	}
	if len(got) != len(want) || len(got) < 20 {
		t.Errorf("%d files mounted, %d unpacked", len(got), len(want))
	}
	for _, name := range []string{"bin/busybox", "files/plain"} {
		tool(t, "cmp", filepath.Join(root, name), filepath.Join(unpacked, name))
	}
	tool(t, "e2fsck", "-fn", filepath.Join(filepath.Dir(root), "disk.raw"))
	if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := m.wait(); err != nil {
		t.Errorf("vic mount: %v\n%s", err, m.errOut.String())
	}
}

// testImageStoreCheck damages each part of the store: it is found without any other store, by name, and what is advised helps.
func testImageStoreCheck(t *testing.T, s *imageShop) {
	if out := s.remoteOK("check", "--deep"); !strings.Contains(out, "4 disks of 3 images, the checksums of 4\nthe store is sound\n") {
		t.Errorf("check: %s", out)
	}
	if out := s.remoteOK("check", "--store", s.path("vch1")); !strings.Contains(out, "the content of 4 compared") {
		t.Errorf("check against a local store: %s", out)
	}
	path := strings.TrimSpace(s.remoteOK("disk", s.ref))
	top := strings.TrimSuffix(filepath.Base(path), ".vmdk")
	var rec struct{ Parent string }
	text, err := os.ReadFile(s.file("disks", top+".json"))
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	set := func(from, to string) func([]byte) []byte {
		return func(p []byte) []byte { return bytes.Replace(p, []byte(from), []byte(to), 1) }
	}
	for i, tt := range []struct {
		name, file string
		edit       func([]byte) []byte // nil removes the file
		disk       string              // that is named
		want       string
	}{
		{"extent cut off", top + "-delta.vmdk", func(p []byte) []byte { return p[:len(p)-512] }, top, "bytes and had"},
		{"a byte of the extent", top + "-delta.vmdk", func(p []byte) []byte { p[len(p)/2] ^= 1; return p }, top, "it is not what was sent"},
		{"a byte of the parent", rec.Parent + "-delta.vmdk", func(p []byte) []byte { p[len(p)-600] ^= 1; return p }, rec.Parent, "it is not what was sent"},
		{"parent gone", rec.Parent + ".json", nil, top, "its parent " + rec.Parent + " is not there"},
		{"parent's extent gone", rec.Parent + "-delta.vmdk", nil, rec.Parent, "-delta.vmdk is not there"},
		{"content ID", top + ".vmdk", func(p []byte) []byte {
			i := bytes.Index(p, []byte("\nCID="))
			copy(p[i+5:], "01234567")
			return p
		}, top, "its content ID is 01234567"},
		{"parent's content ID", top + ".vmdk", set("parentCID=", "parentCID=0\n#"), top, "it was made over content ID 00000000"},
		{"capacity", top + ".vmdk", set("RW ", "RW 1"), top, "it has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := s.file("disks", tt.file)
			was, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if tt.edit == nil {
				err = os.Remove(file)
			} else {
				err = os.WriteFile(file, tt.edit(bytes.Clone(was)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.remote("check", "--deep")
			if err == nil || exitCode(err) != 1 || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("check: %v", err)
			}
			for _, want := range []string{"damaged: [ds] images/disks/" + tt.disk + ".vmdk: ", tt.want, "images: " + s.ref, "pull its images again"} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in\n%s", want, out)
				}
			}
			if strings.HasSuffix(tt.file, ".json") { // which says what the rest was
				out, err := s.remote("check", "--deep", "--repair")
				if err == nil || !strings.Contains(out, "not repaired: the record of its parent ") {
					t.Errorf("repair: %v\n%s", err, out)
				}
				if err := os.WriteFile(file, was, 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				args := []string{"check", "--deep", "--repair"} // from the registry
				if i%2 == 0 {
					args = append(args, "--store", s.path("vch1"))
				}
				if out := s.remoteOK(args...); !strings.Contains(out, "repair: sent the files of disk [ds] images/disks/"+tt.disk+".vmdk again") || !strings.HasSuffix(out, "the store is sound\n") {
					t.Errorf("repair:\n%s", out)
				}
				if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, was) {
					t.Errorf("repaired it has other bytes: %v", err)
				}
			}
			s.remoteOK("check", "--deep")
		})
	}
	t.Run("advice", func(t *testing.T) {
		file := s.file("disks", rec.Parent+"-delta.vmdk")
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p[len(p)-600] ^= 1
		err = os.WriteFile(file, p, 0o600)
		if err == nil {
			err = os.Remove(s.file("disks", rec.Parent+".json"))
		}
		if err != nil {
			t.Fatal(err)
		}
		s.remoteOK("pull", s.ref)
		for _, vch := range []string{"vch1", "vch2"} {
			if err := os.RemoveAll(s.path(vch)); err != nil {
				t.Fatal(err)
			}
			s.vch(vch)
		}
		s.remoteOK("gc")
		if out := s.remoteOK("check", "--deep"); !strings.Contains(out, "4 disks of 3 images, the checksums of 4\nthe store is sound\n") {
			t.Errorf("check: %s", out)
		}
	})
}

func TestStoreFlags(t *testing.T) {
	store := t.TempDir()
	site := []string{"--target", "127.0.0.1:1", "--user", "u"}
	for _, tt := range []struct {
		args []string
		want string
		exit int
	}{
		{[]string{"ls"}, "name a store: --store DIR, or --image-store", 2},
		{[]string{"ls", "--store", store, "--image-store", "ds"}, "give one of them", 2},
		{[]string{"ls", "--store", store, "--target", "x"}, "--target is of no use without --image-store", 2},
		{[]string{"ls", "--image-store", "ds"}, "--image-store needs --target", 2},
		{append([]string{"ls", "--image-store", "ds/"}, site...), "is no folder of a datastore", 2},
		{append([]string{"ls", "--image-store", "ds/../x"}, site...), "is no folder of a datastore", 2},
		{append([]string{"ls", "--image-store", "ds"}, site...), "there is no password for u", 2},
		{append([]string{"check", "--image-store", "ds", "--repair", "--drop"}, site...), "--drop does not work on a datastore", 2},
		{append([]string{"rm", "--image-store", "ds", "-f", "x"}, site...), "--force does not work on a datastore", 2},
		{[]string{"seed", "--store", store, "--image-format", "hosted", "x"}, "--image-format is of no use without --image-store", 2},
		{append([]string{"flatten", "--image-store", "ds", "x"}, site...), "disks there never change", 2},
		{append([]string{"save", "--image-store", "ds", "x"}, site...), "docker save there; or vic pull --store DIR, and vic save --store DIR", 2},
		{append([]string{"push", "--image-store", "ds", "x"}, site...), "docker push there; or vic pull --store DIR, and vic push --store DIR", 2},
		{[]string{"push", "x"}, "name a store: --store DIR", 2},
	} {
		_, _, err := vic(t, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != tt.exit {
			t.Errorf("vic %q: exit code %d, %v; want %d, %q", tt.args, exitCode(err), err, tt.exit, tt.want)
		}
	}
}
