package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vic/bench/corpus"
	"vic/bench/oracle"
)

// TestInterruptedMounted ends an engine that has a file system mounted and waits for a blob.
func TestInterruptedMounted(t *testing.T) {
	oracle.Need(t, "mkfs.ext4", "tar", "gzip", "mount")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	d := generate(t, corpus.Shape{Layers: 1, Files: 3})
	img := openImage(t, d)
	blob := d.Blob(img.layers[0].blob.Digest)
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(blob, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	work, err := makeWork(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan string, 1)
	go func() {
		f, err := os.OpenFile(blob, os.O_WRONLY, 0) // returns when the shell has opened it
		if err == nil {
			defer f.Close()
		}
		mounts, _ := os.ReadFile("/proc/self/mounts")
		opened <- string(mounts)
		cancel()
		<-t.Context().Done() // or gzip would see the end
	}()
	_, err = measure(ctx, new(kernelTar), img, work)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if mounts := <-opened; !strings.Contains(mounts, work) {
		t.Errorf("it was not mounted while it ran:\n%s", mounts)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), work) {
		t.Errorf("still mounted: %v\n%s", err, mounts)
	}
	empty(t, work)
}

// TestConverters lets e2fsck judge what the file system makers leave, so that what is compared is whole.
func TestConverters(t *testing.T) {
	oracle.Need(t, "mkfs.ext4", "mke2fs", "e2fsck", "tar", "gzip")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	img := openImage(t, generate(t, corpus.Shape{Layers: 2, Files: 150, Sizes: corpus.Fixed(3000), Whiteouts: 0.1}))
	for _, e := range []engine{new(kernelTar), new(mke2fsDir)} {
		dir := t.TempDir()
		if _, err := e.check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := e.prepare(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		cpu, err := e.pull(t.Context(), img)
		if err != nil || cpu <= 0 {
			t.Fatalf("%s: %v, %v", e.name(), cpu, err)
		}
		if out, err := exec.Command("e2fsck", "-fn", dir+"/disk").CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", e.name(), err, out)
		}
		out, err := exec.Command("debugfs", "-R", "stat d00/d01/f00000149", dir+"/disk").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Size: 3000") {
			t.Errorf("%s: %v\n%s", e.name(), err, out)
		}
		if n, err := allocated(dir); err != nil || n < 150*3000 {
			t.Errorf("%s takes %d bytes, %v", e.name(), n, err)
		}
	}
}

// TestContainerdEnds has a containerd that does not run.
func TestContainerdEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	bin, work := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\ncase $1 in --version) echo fake 1;; *) echo broken >&2; exit 1;; esac\n"
	for _, name := range []string{"containerd", "ctr"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := &containerd{peers: bin}
	if version, err := c.check(t.Context()); version != "fake 1" || err != nil {
		t.Errorf("version %q, %v", version, err)
	}
	img := openImage(t, generate(t, corpus.Shape{Layers: 1, Files: 1}))
	if _, err := measure(t.Context(), c, img, work); err == nil || !strings.Contains(err.Error(), "ended at once: broken") {
		t.Errorf("measured: %v", err)
	}
	empty(t, work)
}

func TestRunRefused(t *testing.T) {
	for _, o := range []Options{{}, {Vic: []string{"vic"}, Runs: -1}, {Vic: []string{"/nope"}, Work: t.TempDir()}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v was measured", o)
		}
		if o.Work != "" {
			empty(t, o.Work)
		}
	}
}
