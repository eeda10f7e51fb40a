package testimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Installed returns a layer with what installing Debian packages on base, and a shell script after it, changes; what
// they remove stays. Manuals and translations are left out. The tar is kept in cache, under name.
func Installed(ctx context.Context, cache, name string, base Layer, packages []string, script string) (Layer, error) {
	createdBy := "RUN apt-get install " + strings.Join(packages, " ")
	if script != "" {
		createdBy += " && " + strings.ReplaceAll(strings.TrimSpace(script), "\n", " && ")
	}
	sum := sha256.Sum256([]byte(base.CreatedBy + "\n" + createdBy + "\n" + install))
	layer := Layer{CreatedBy: createdBy, File: filepath.Join(cache, fmt.Sprintf("debian-%s+%s-%x.tar", suite, name, sum[:4]))}
	if _, err := os.Stat(layer.File); err == nil {
		return layer, nil
	}
	mirror, err := aptMirror(ctx)
	if err != nil {
		return Layer{}, err
	}
	work, err := os.MkdirTemp(cache, "install-")
	if err != nil {
		return Layer{}, err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return Layer{}, err
	}
	if err := run(ctx, "tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", base.File); err != nil {
		return Layer{}, err
	}
	args := append([]string{"--mount", "sh", "-ec", install, "sh", root, mirror, suite, script}, packages...)
	if err := run(ctx, "unshare", args...); err != nil {
		return Layer{}, err
	}
	full := Layer{File: filepath.Join(work, "full.tar")}
	err = run(ctx, "tar", "-C", root, "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name",
		"--pax-option=delete=atime,delete=ctime", "-cf", full.File, ".")
	if err != nil {
		return Layer{}, err
	}
	tmp := filepath.Join(work, "layer.tar")
	if err := writeTar(tmp, Added(createdBy, base, full)); err != nil {
		return Layer{}, err
	}
	return layer, os.Rename(tmp, layer.File)
}

// install is run with the root, the mirror, the suite, the script to run afterwards and the packages. No service is
// started, and what belongs to this machine does not stay. /proc is mounted where nobody else sees it.
const install = `
root=$1 mirror=$2 suite=$3 script=$4
shift 4
mount -t proc proc "$root/proc"
cp -a "$root/etc" "$root.etc"
cat /etc/resolv.conf >"$root/etc/resolv.conf"
echo "deb $mirror $suite main" >"$root/etc/apt/sources.list"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
for p in doc man info locale lintian; do echo "path-exclude=/usr/share/$p/*"; done >"$root/etc/dpkg/dpkg.cfg.d/trim"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$root" apt-get -qq update
chroot "$root" apt-get -qq install -y --no-install-recommends "$@"
chroot "$root" sh -ec "$script"
chroot "$root" apt-get clean
for f in resolv.conf apt/sources.list; do
	rm -f "$root/etc/$f"
	if [ -e "$root.etc/$f" ]; then cp -a "$root.etc/$f" "$root/etc/$f"; fi
done
rm -rf "$root/etc/dpkg/dpkg.cfg.d/trim" "$root/usr/sbin/policy-rc.d" "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/*-old
find "$root/var/log" -type f -delete
`

func writeTar(path string, l Layer) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	if err := l.Write(w); err != nil {
		f.Close()
		return err
	}
	if err := w.Close(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
