package acceptance

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

func registry(t *testing.T) *testimage.Registry {
	t.Helper()
	need(t, "docker-registry", "docker")
	r, err := testimage.StartRegistry(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop() })
	return r
}

// debian pushes a Debian root with 20,000 small files and edits on top, seven layers.
func debian(t *testing.T, r *testimage.Registry) string {
	t.Helper()
	need(t, "debootstrap")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	base, err := testimage.Debian(t.Context(), filepath.Join(cache, "vic"), "git", "python3")
	if err != nil {
		t.Fatal(err)
	}
	layers := append([]testimage.Layer{base, testimage.SmallFiles(20000)}, append(testimage.Edits(), testimage.LowerLink())...)
	img, err := testimage.Build(v1.Config{Cmd: []string{"bash"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push(t.Context(), "acceptance/debian:1", img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// chain lists the disks of an image from the top down, as qemu-img sees them.
func chain(t *testing.T, top string) []string {
	t.Helper()
	var links []struct {
		Filename string `json:"filename"`
	}
	if err := json.Unmarshal([]byte(command(t, "qemu-img", "info", "-f", "vmdk", "--backing-chain", "--output=json", top)), &links); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, l := range links {
		list = append(list, l.Filename)
	}
	return list
}

// checkDisks holds every disk of the chain against qemu-img and e2fsck, and returns the
// top one as a raw file.
func checkDisks(t *testing.T, top string) string {
	t.Helper()
	need(t, "qemu-img", "e2fsck")
	dir := t.TempDir()
	var raw string
	for i, disk := range slices.Backward(chain(t, top)) {
		command(t, "qemu-img", "check", "-f", "vmdk", disk)
		if raw != "" {
			os.Remove(raw)
		}
		raw = filepath.Join(dir, fmt.Sprintf("%d.raw", i))
		command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
		if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck of %s: %v\n%s", disk, err, out)
		}
	}
	return raw
}

// listing describes a directory with the machine's own tools: kinds, modes, owners,
// times, link counts, sizes, targets; device numbers; contents; extended attributes.
func listing(t *testing.T, root string) []string {
	t.Helper()
	need(t, "getfattr")
	out := command(t, "sh", "-ec", `cd "$1"
		find . -type d -printf '%P %y %#m %U:%G %T@\n' -o -printf '%P %y %#m %U:%G %T@ links %n size %s -> %l\n'
		find . \( -type b -o -type c \) -exec stat -c '%n device %t:%T' {} +
		find . -type f -exec sha256sum {} +
		getfattr -R -h -d -m - . 2>/dev/null | awk '/^# file/ {f=$0; next} /=/ {print f, $0}'`, "sh", root)
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	return lines
}

func compareListings(t *testing.T, got, want []string) {
	t.Helper()
	index := func(list []string) map[string]bool {
		m := make(map[string]bool, len(list))
		for _, l := range list {
			m[l] = true
		}
		return m
	}
	g, w := index(got), index(want)
	n := 0
	for _, l := range want {
		if !g[l] {
			if n++; n < 20 {
				t.Errorf("missing: %s", l)
			}
		}
	}
	for _, l := range got {
		if !w[l] {
			if n++; n < 40 {
				t.Errorf("should not be: %s", l)
			}
		}
	}
	if n > 0 {
		t.Errorf("%d differences in %d lines", n, len(want))
	}
}

// TestDebianImage pulls a real image with the docker client; every disk of its chain must
// be clean, and the top one equal to what umoci unpacks.
func TestDebianImage(t *testing.T) {
	need(t, "umoci", "skopeo", "mount")
	ref := debian(t, registry(t))
	h := serve(t, filepath.Join(t.TempDir(), "store"))
	begin := time.Now()
	t.Log(h.docker("pull", ref))
	t.Logf("docker pull: %.2f s", time.Since(begin).Seconds())
	top := strings.TrimSpace(command(t, vic, "disk", "--store", h.store, ref))
	raw := checkDisks(t, top)
	dir := t.TempDir()
	command(t, "mount", "-t", "ext4", "-o", "loop,ro,noload", raw, dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	oci := filepath.Join(t.TempDir(), "oci")
	command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+ref, "oci:"+oci+":1")
	root := filepath.Join(t.TempDir(), "root")
	command(t, "umoci", "raw", "unpack", "--image", oci+":1", root)
	compareListings(t, listing(t, dir), listing(t, root))

	// Gone without a trace, and back again under the same ID.
	id := strings.TrimSpace(h.docker("images", "-q", "--no-trunc"))
	h.docker("rmi", ref)
	if disks, err := filepath.Glob(filepath.Join(h.store, "disks", "*")); err != nil || len(disks) != 2 {
		t.Errorf("after rmi the store has the disks %q (%v), want the empty one only", disks, err)
	}
	h.docker("pull", "-q", ref)
	if again := strings.TrimSpace(h.docker("images", "-q", "--no-trunc")); again != id {
		t.Errorf("image ID %s after pulling again, %s before", again, id)
	}
}

// TestForeignBuilders pulls what buildah and skopeo make: a scratch image with whiteouts
// by buildah, the same in docker's schema 2.
func TestForeignBuilders(t *testing.T) {
	need(t, "buildah", "skopeo", "umoci", "mount", "busybox")
	r := registry(t)
	work := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(command(t, "buildah", append([]string{"--root", filepath.Join(work, "root"), "--runroot", filepath.Join(work, "run"), "--storage-driver", "vfs"}, args...)...))
	}
	from := "scratch"
	var mnt string
	for i := range 5 {
		c := buildah("from", "--pull-never", from)
		mnt = buildah("mount", c)
		script := fmt.Sprintf(`cd "$1"; mkdir -p d%[1]d/sub keep; echo %[1]d >d%[1]d/sub/f; echo %[1]d >keep/changed; echo %[1]d >keep/only%[1]d; ln -f keep/changed keep/link%[1]d; chown -R %[1]d:%[1]d d%[1]d`, i)
		if i > 0 {
			script += fmt.Sprintf(`; rm -rf d%[1]d keep/only%[1]d; if [ %[2]d = 3 ]; then rm -rf keep/dir; echo file >keep/dir; else rm -rf keep/dir; mkdir keep/dir; echo %[2]d >keep/dir/x; fi`, i-1, i)
		}
		command(t, "sh", "-ec", script, "sh", mnt)
		buildah("umount", c)
		from = fmt.Sprintf("localhost/step%d:1", i)
		buildah("commit", "-q", "--format", "oci", c, from)
	}
	for name, format := range map[string]string{"oci": "oci", "schema2": "v2s2"} {
		t.Run(name, func(t *testing.T) {
			ref := r.Addr + "/acceptance/buildah:" + name
			buildah("push", "-q", "--tls-verify=false", "--format", format, from, "docker://"+ref)
			store := filepath.Join(t.TempDir(), "store")
			command(t, vic, "pull", "--store", store, ref)
			raw := checkDisks(t, strings.TrimSpace(command(t, vic, "disk", "--store", store, ref)))
			dir := t.TempDir()
			command(t, "mount", "-t", "ext4", "-o", "loop,ro,noload", raw, dir)
			t.Cleanup(func() { exec.Command("umount", dir).Run() })
			oci := filepath.Join(t.TempDir(), "oci")
			command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+ref, "oci:"+oci+":1")
			root := filepath.Join(t.TempDir(), "root")
			command(t, "umoci", "raw", "unpack", "--image", oci+":1", root)
			compareListings(t, listing(t, dir), listing(t, root))
		})
	}
}

// TestSave saves an image, lets skopeo read it both as an OCI layout and as docker's
// archive, and pulls what skopeo pushed of it into another store: the image and its disks
// must be the same.
func TestSave(t *testing.T) {
	need(t, "skopeo", "umoci", "tar")
	r := registry(t)
	ref := debian(t, r)
	store := filepath.Join(t.TempDir(), "store")
	h := serve(t, store)
	h.docker("pull", "-q", ref)
	id := strings.TrimSpace(h.docker("images", "-q", "--no-trunc"))
	dir := t.TempDir()
	saved, byDocker := filepath.Join(dir, "vic.tar"), filepath.Join(dir, "docker.tar")
	command(t, vic, "save", "--store", store, "-o", saved, ref)
	h.docker("save", "-o", byDocker, ref)
	command(t, "cmp", saved, byDocker)

	for _, transport := range []string{"oci-archive:", "docker-archive:"} {
		raw := command(t, "skopeo", "inspect", "--config", "--raw", transport+saved)
		if got := "sha256:" + fmt.Sprintf("%x", sha256.Sum256([]byte(raw))); got != id {
			t.Errorf("%s has image %s, want %s", transport, got, id)
		}
		copied := r.Addr + "/acceptance/saved:" + strings.TrimSuffix(transport, "-archive:")
		command(t, "skopeo", "copy", "-q", "--dest-tls-verify=false", transport+saved, "docker://"+copied)
		again := filepath.Join(t.TempDir(), "store")
		command(t, vic, "pull", "--store", again, copied)
		command(t, "diff", "-r", filepath.Join(store, "disks"), filepath.Join(again, "disks"))
	}
	layout := filepath.Join(dir, "layout")
	command(t, "sh", "-ec", `mkdir "$1" && tar -C "$1" -xf "$2"`, "sh", layout, saved)
	if tags := command(t, "umoci", "list", "--layout", layout); strings.TrimSpace(tags) != "1" {
		t.Errorf("umoci finds the tags %q", tags)
	}
	if _, err := h.try("save", "-o", filepath.Join(dir, "none"), "nope"); err == nil || !strings.Contains(err.Error(), "reference does not exist: nope") {
		t.Errorf("save of no image: %v", err)
	}
}

// kills is how often TestKill kills; layerstore's tests do it at each step, and make nightly oftener.
var kills = flag.Int("kills", 10, "how often TestKill kills vic serve")

// TestKill kills vic serve at random moments of a pull. Each time the store must open and check clean; at the end the
// pull must complete.
func TestKill(t *testing.T) {
	need(t, "qemu-img", "e2fsck")
	ref := debian(t, registry(t))
	store := filepath.Join(t.TempDir(), "store")
	begin := time.Now()
	command(t, vic, "pull", "--store", store, ref)
	whole := time.Since(begin)
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("a pull takes %v; seed %d", whole, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := serve(t, store)
	for i := range *kills {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.Int64N(int64(whole+whole/4))))
		pull := h.client("pull", "-q", ref)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done() // the moment of the power cut is what the test is about
		cancel()
		h.kill()
		pull.Wait()
		h.start()
		if out, err := exec.Command(vic, "check", "--store", store).CombinedOutput(); err != nil {
			t.Fatalf("after kill %d: vic check: %v\n%s", i+1, err, out)
		}
		if i%5 == 4 { // a complete image would leave nothing to interrupt
			h.try("rmi", ref)
		}
	}
	h.docker("pull", "-q", ref)
	checkDisks(t, strings.TrimSpace(command(t, vic, "disk", "--store", store, ref)))
}
