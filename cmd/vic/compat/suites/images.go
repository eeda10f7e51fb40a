package main

import (
	"archive/tar"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"vic/bench/testimage"
)

// hello says what the image hello-world says.
//
//go:embed testdata/hello.go
var hello embed.FS

// loadImages makes the images that the suites expect to be there, in the shape of those of these names, and loads them.
func (w workshop) loadImages(ctx context.Context, h *host) error {
	images, err := w.images(ctx)
	if err != nil {
		return err
	}
	if err := tarball.MultiRefWriteToFile(w.archive(), images); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	debian, err := testimage.Debian(ctx, filepath.Join(cache, "vic"))
	if err != nil {
		return err
	}
	cmd := h.docker(ctx, w.client(), "import", "-c", "ENV "+path, "-c", `CMD ["bash"]`, debian.File, "debian:bookworm-slim")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker import: %w\n%s", err, text)
	}
	return w.reload(ctx, h)
}

// archive has the images that reload loads.
func (w workshop) archive() string { return filepath.Join(w.dir, "images.tar") }

// reload brings back what a test has removed of the images.
func (w workshop) reload(ctx context.Context, h *host) error {
	if text, err := h.docker(ctx, w.client(), "load", "-q", "-i", w.archive()).CombinedOutput(); err != nil {
		return fmt.Errorf("docker load: %w\n%s", err, text)
	}
	return nil
}

// path is what the images have in their environment.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (w workshop) images(ctx context.Context) (map[name.Reference]v1.Image, error) {
	programs, err := testimage.Busybox()
	if err != nil {
		return nil, err
	}
	busybox, err := testimage.Build(v1.Config{Env: []string{path}, Cmd: []string{"sh"}}, programs, accounts)
	if err != nil {
		return nil, err
	}
	glibc, err := testimage.Build(v1.Config{Env: []string{path}, Cmd: []string{"sh"}, Labels: map[string]string{"libc": "glibc"}}, programs, accounts)
	if err != nil {
		return nil, err
	}
	// Two images: removing the name busybox is to fail where the image has no other.
	images := map[string]v1.Image{
		"busybox:latest": busybox, "busybox:glibc": glibc,
		"registry:5000/alpine:frozen": glibc, "registry:5000/busybox:frozen": glibc, // docker/cli's
	}
	for _, arch := range []string{"amd64", "arm64", "arm"} {
		img, err := w.hello(ctx, arch)
		if err != nil {
			return nil, err
		}
		images["hello-world:"+arch] = img
	}
	images["hello-world:latest"], images["hello-world:frozen"] = images["hello-world:amd64"], images["hello-world:amd64"]
	images["arm32v7/hello-world:latest"] = images["hello-world:arm"]
	delete(images, "hello-world:arm")
	named := map[name.Reference]v1.Image{}
	for tag, img := range images {
		ref, err := name.NewTag(tag)
		if err != nil {
			return nil, err
		}
		named[ref] = img
	}
	return named, nil
}

// accounts are those of busybox's image.
var accounts = testimage.Layer{CreatedBy: "COPY passwd group /etc/", Write: func(w *tar.Writer) error {
	var passwd, group strings.Builder
	for _, line := range strings.Fields("root:0:/root daemon:1:/usr/sbin bin:2:/bin sys:3:/dev sync:100:/bin mail:8:/var/spool/mail www-data:33:/var/www operator:37:/var nobody:65534:/home") {
		f := strings.Split(line, ":")
		shell := "/bin/false"
		if f[0] == "root" {
			shell = "/bin/sh"
		}
		fmt.Fprintf(&passwd, "%s:x:%s:%s:%s:%s:%s\n", f[0], f[1], f[1], f[0], f[2], shell)
	}
	for _, line := range strings.Fields("root:0 daemon:1 bin:2 sys:3 adm:4 tty:5 disk:6 lp:7 mail:8 kmem:9 wheel:10:root cdrom:11 dialout:18 floppy:19 video:28 audio:29 tape:32 www-data:33 operator:37 utmp:43 plugdev:46 staff:50 lock:54 netdev:82 users:100 nobody:65534") {
		f := strings.Split(line+":", ":")
		fmt.Fprintf(&group, "%s:x:%s:%s\n", f[0], f[1], f[2])
	}
	for _, dir := range []string{"usr/sbin/", "usr/bin/", "var/spool/", "var/spool/mail/", "var/www/"} {
		if err := testimage.Add(w, tar.Header{Name: dir}, ""); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"etc/passwd": passwd.String(), "etc/group": group.String()} {
		if err := testimage.Add(w, tar.Header{Name: name}, text); err != nil {
			return err
		}
	}
	return nil
}}

// hello builds the image hello-world. That of another architecture is so in name only, for nobody can run it.
func (w workshop) hello(ctx context.Context, arch string) (v1.Image, error) {
	source, err := hello.ReadFile("testdata/hello.go")
	if err != nil {
		return nil, err
	}
	file, program := filepath.Join(w.dir, "hello.go"), filepath.Join(w.dir, "hello")
	if err := os.WriteFile(file, source, 0o644); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", program, file)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build hello-world: %w\n%s", err, text)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	img, err := testimage.Build(v1.Config{Env: []string{path}, Cmd: []string{"/hello"}}, testimage.Layer{CreatedBy: "COPY hello /", Write: func(t *tar.Writer) error {
		return testimage.Add(t, tar.Header{Name: "hello", Mode: 0o755}, string(b))
	}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Architecture = arch
	return mutate.ConfigFile(img, config)
}
