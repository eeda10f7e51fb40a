package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// unpacker returns the program that decompresses a layer's blob to its standard output.
func unpacker(l imageLayer) string {
	switch l.blob.MediaType {
	case ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return "gzip -dc"
	case ocispec.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return "zstd -dc"
	}
	return "cat"
}

// shell runs a command of sh, with what follows in $1, $2…
func shell(ctx context.Context, script string, args ...string) (time.Duration, error) {
	return command(ctx, "sh", append([]string{"-c", "set -e; " + script, "sh"}, args...)...)
}

// tar2ext4 is hcsshim's converter: a file system for each layer, to be stacked by overlayfs. All layers at once,
// as many as vic takes.
type tar2ext4 struct{ peers, bin, dir string }

func (t *tar2ext4) name() string { return "tar2ext4" }
func (t *tar2ext4) does() string {
	return "local blobs to an ext4 file for each layer, for overlayfs; no pull"
}
func (t *tar2ext4) release() error { return nil }

func (t *tar2ext4) check(context.Context) (_ string, err error) {
	t.bin, err = find(t.peers, "tar2ext4")
	return "tar2ext4", err // it does not know its version
}

func (t *tar2ext4) prepare(_ context.Context, dir string) error {
	t.dir = dir
	return nil
}

func (t *tar2ext4) pull(ctx context.Context, img *image) (time.Duration, error) {
	slots := make(chan struct{}, max(3, runtime.GOMAXPROCS(0)))
	var wg sync.WaitGroup
	cpu := make([]time.Duration, len(img.layers))
	errs := make([]error, len(img.layers))
	for i, l := range img.layers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			cpu[i], errs[i] = shell(ctx, unpacker(l)+` <"$1" | "$2" -overlay -o "$3"`,
				img.dir.Blob(l.blob.Digest), t.bin, filepath.Join(t.dir, strconv.Itoa(i)))
		})
	}
	wg.Wait()
	var sum time.Duration
	for _, c := range cpu {
		sum += c
	}
	return sum, errors.Join(errs...)
}

// kernelTar makes one file system and lets the kernel write it, which mounts it in a loop device.
type kernelTar struct{ dir string }

func (k *kernelTar) name() string   { return "mount + tar" }
func (k *kernelTar) does() string   { return "local blobs to one ext4 file, whiteouts left out; no pull" }
func (k *kernelTar) release() error { return nil }

func (k *kernelTar) check(ctx context.Context) (string, error) {
	return checkTools(ctx, "mkfs.ext4", "tar", "mount", "umount")
}

func (k *kernelTar) prepare(_ context.Context, dir string) error {
	k.dir = dir
	return nil
}

func (k *kernelTar) pull(ctx context.Context, img *image) (time.Duration, error) {
	cpu, err := shell(ctx, `mkdir "$1/mnt"; truncate -s 64G "$1/disk"; mkfs.ext4 -q -E nodiscard "$1/disk"; mount -o loop "$1/disk" "$1/mnt"`, k.dir)
	if err != nil {
		return 0, err
	}
	extracting, err := extract(ctx, img, filepath.Join(k.dir, "mnt"))
	if err != nil {
		return 0, err
	}
	end, err := shell(ctx, `umount "$1/mnt"; sync "$1/disk"`, k.dir)
	return cpu + extracting + end, err
}

// mke2fsDir unpacks into a folder and lets mke2fs make a file system of it.
type mke2fsDir struct{ dir string }

func (m *mke2fsDir) name() string { return "tar + mke2fs -d" }
func (m *mke2fsDir) does() string {
	return "local blobs to a folder and that to an ext4 file, whiteouts left out; no pull"
}
func (m *mke2fsDir) release() error { return nil }

func (m *mke2fsDir) check(ctx context.Context) (string, error) {
	return checkTools(ctx, "mke2fs", "tar")
}

func (m *mke2fsDir) prepare(_ context.Context, dir string) error {
	m.dir = dir
	return nil
}

func (m *mke2fsDir) pull(ctx context.Context, img *image) (time.Duration, error) {
	root := filepath.Join(m.dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return 0, err
	}
	cpu, err := extract(ctx, img, root)
	if err != nil {
		return 0, err
	}
	making, err := shell(ctx, `mke2fs -q -t ext4 -d "$1/root" "$1/disk" 64G; sync "$1/disk"`, m.dir)
	return cpu + making, err
}

// extract unpacks the layers into a folder, one after the other, as they stand: tar knows no whiteouts.
func extract(ctx context.Context, img *image, dir string) (time.Duration, error) {
	var sum time.Duration
	for _, l := range img.layers {
		cpu, err := shell(ctx, unpacker(l)+` <"$1" | tar -x --numeric-owner --xattrs --xattrs-include='*' --exclude='.wh.*' -C "$2"`, img.dir.Blob(l.blob.Digest), dir)
		if err != nil {
			return 0, err
		}
		sum += cpu
	}
	return sum, nil
}

// checkTools tells what keeps the file system makers from being measured, and e2fsprogs' version.
func checkTools(ctx context.Context, names ...string) (string, error) {
	for _, name := range names {
		if _, err := find("", name); err != nil {
			return "", err
		}
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("needs root, to keep owners")
	}
	return firstLine(ctx, names[0], "-V")
}
