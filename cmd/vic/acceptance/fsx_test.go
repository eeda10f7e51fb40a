package acceptance

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

// fsxLayers are busybox, testdata/fsx, and layers with the files that it begins with: each
// has a few, new ones and other versions of those below.
func fsxLayers(t *testing.T, n int) []testimage.Layer {
	t.Helper()
	base, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fsx")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./testdata/fsx")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	layers := []testimage.Layer{base, {Write: func(w *tar.Writer) error {
		return testimage.Add(w, tar.Header{Name: "fsx", Mode: 0o755}, string(program))
	}}}
	for i := len(layers); i < n; i++ {
		layers = append(layers, testimage.Layer{Write: func(w *tar.Writer) error {
			for k := range 3 {
				name := fmt.Sprintf("f%02d", (i*(k+1)+k)%n) // k=0 is new, the others mostly not
				size := (i*31 + k*77) * 211
				if err := testimage.Add(w, tar.Header{Name: "data/" + name, Mode: 0o644}, strings.Repeat(name+"\n", size/4+1)[:size]); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	return layers
}

// TestFsx has guests work hard on a disk over twenty others, one to its end and one until
// the power fails. The file system must be clean, after its journal is replayed, and the
// disk in order; what the first guest has written is what this machine reads.
func TestFsx(t *testing.T) {
	need(t, "qemu-img", "e2fsck", "mount", "busybox", "sha256sum")
	const depth = 20
	r := registry(t)
	img, err := testimage.Build(v1.Config{}, fsxLayers(t, depth)...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push(t.Context(), "fsx:1", img)
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, filepath.Join(t.TempDir(), "store"))
	h.docker("pull", "-q", ref)
	seed := rand.Uint32()
	t.Logf("seed %d", seed)
	fsx := func(name string, operations int) {
		t.Helper()
		h.docker("run", "-d", "--name", name, ref, "/fsx", "/data", fmt.Sprint(seed), fmt.Sprint(operations))
	}
	disk := func(name string) string {
		t.Helper()
		id := strings.TrimSpace(h.docker("ps", "-aq", "--no-trunc", "--filter", "name=^"+name+"$"))
		return filepath.Join(h.store, "containers", id, "disk.vmdk")
	}

	fsx("whole", 500)
	if code := strings.TrimSpace(h.docker("wait", "whole")); code != "0" {
		out, err := h.try("logs", "whole")
		t.Fatalf("fsx: exit code %s\n%.2000s%v", code, out, err)
	}
	sums := h.docker("logs", "whole")
	if n := strings.Count(sums, "\n"); n < depth {
		t.Fatalf("fsx has %d files:\n%s", n, sums)
	}
	if n := len(chain(t, disk("whole"))); n < depth {
		t.Errorf("the container's chain has %d disks, want %d at least", n, depth)
	}
	raw := convert(t, disk("whole"))
	command(t, "e2fsck", "-fn", raw)
	dir := t.TempDir()
	command(t, "mount", "-t", "ext4", "-o", "loop,ro,noload", raw, dir)
	defer command(t, "umount", dir)
	check := exec.CommandContext(t.Context(), "sha256sum", "--quiet", "--strict", "-c", "-")
	check.Dir, check.Stdin = filepath.Join(dir, "data"), strings.NewReader(sums)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("the guest wrote other files: %v\n%s", err, out)
	}

	fsx("cut", 1_000_000)
	logs := h.client("logs", "-f", "cut")
	said, err := logs.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || !strings.HasPrefix(line, "0 of") {
		t.Fatalf("fsx says %q, %v", line, err)
	}
	h.docker("exec", "cut", "sh", "-c", "until [ $(find /data -name 'new-*' | wc -l) -gt 60 ]; do :; done") // well under way
	pid, err := strconv.Atoi(strings.TrimSpace(h.docker("inspect", "-f", "{{.State.Pid}}", "cut")))
	if err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Fatalf("kill the virtual machine: process %d, %v", pid, err)
	}
	io.Copy(io.Discard, said)
	logs.Wait()
	h.docker("wait", "cut")
	raw = convert(t, disk("cut"))
	if out, err := exec.Command("e2fsck", "-fp", raw).CombinedOutput(); err != nil && err.(*exec.ExitError).ExitCode() != 1 {
		t.Errorf("e2fsck -fp: %v\n%s", err, out)
	} else if !bytes.Contains(out, []byte("recovering journal")) {
		t.Errorf("the journal was empty: %s", out)
	}
	command(t, "e2fsck", "-fn", raw)
	h.docker("rm", "-f", "whole", "cut")
	if out := command(t, vic, "check", "--deep", "--store", h.store); out != "the store is sound\n" {
		t.Errorf("check: %s", out)
	}
}

// convert holds a container's disk against qemu-img and returns it as a raw file.
func convert(t *testing.T, disk string) string {
	t.Helper()
	command(t, "qemu-img", "check", "-f", "vmdk", disk)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
	return raw
}
