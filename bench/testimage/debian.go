package testimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const suite = "bookworm"

// Debian returns a layer with a minimal Debian root file system and packages with what
// they need. It is made by debootstrap from the mirror that apt on this machine uses,
// once: the tar is kept in cache.
func Debian(ctx context.Context, cache string, packages ...string) (Layer, error) {
	args := []string{"--variant=minbase"}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	layer := Layer{
		CreatedBy: strings.Join(append(append([]string{"debootstrap"}, args...), suite), " "),
		File:      filepath.Join(cache, strings.Join(append([]string{"debian", suite}, packages...), "-")+".tar"),
	}
	if _, err := os.Stat(layer.File); err == nil {
		return layer, nil
	}
	mirror, err := aptMirror(ctx)
	if err != nil {
		return Layer{}, err
	}
	if err := os.MkdirAll(cache, 0755); err != nil {
		return Layer{}, err
	}
	work, err := os.MkdirTemp(cache, "debootstrap-")
	if err != nil {
		return Layer{}, err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := run(ctx, "debootstrap", append(args, suite, root, mirror)...); err != nil {
		return Layer{}, err
	}
	for _, p := range []string{"var/cache/apt", "var/lib/apt/lists", "var/log"} {
		if err := emptyFiles(filepath.Join(root, p)); err != nil {
			return Layer{}, err
		}
	}
	// The machine's own apt sources are nobody's business.
	list := filepath.Join(root, "etc/apt/sources.list")
	if err := os.WriteFile(list, []byte("deb http://deb.debian.org/debian "+suite+" main\n"), 0644); err != nil {
		return Layer{}, err
	}
	tmp := filepath.Join(work, "root.tar")
	err = run(ctx, "tar", "-C", root, "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name",
		"--pax-option=delete=atime,delete=ctime", "-cf", tmp, ".")
	if err != nil {
		return Layer{}, err
	}
	return layer, os.Rename(tmp, layer.File)
}

// emptyFiles removes the files below dir and keeps its directories.
func emptyFiles(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Remove(p)
	})
}

// aptMirror asks apt where it gets the suite from.
func aptMirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: "+suite, "Component: main").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its mirror: %w", err)
	}
	mirror, _, _ := strings.Cut(string(out), "\n")
	if mirror == "" {
		return "http://deb.debian.org/debian", nil
	}
	return mirror, nil
}

// Added returns a layer with what the tar of top has and that of base has not, or has
// with other content or attributes: what installing top's further packages would do.
func Added(createdBy string, base, top Layer) Layer {
	return Layer{CreatedBy: createdBy, Write: func(w *tar.Writer) error {
		have := make(map[string][sha256.Size]byte)
		err := eachEntry(base.File, func(h *tar.Header, body io.Reader) error {
			sum, err := entrySum(h, body)
			have[h.Name] = sum
			return err
		})
		if err != nil {
			return err
		}
		news := make(map[string]bool)
		err = eachEntry(top.File, func(h *tar.Header, body io.Reader) error {
			sum, err := entrySum(h, body)
			// A link without the file that it leads to would not be a link in this layer.
			if old, ok := have[h.Name]; !ok || old != sum || news[h.Linkname] {
				news[h.Name] = true
			}
			return err
		})
		if err != nil {
			return err
		}
		return eachEntry(top.File, func(h *tar.Header, body io.Reader) error {
			if !news[h.Name] {
				return nil
			}
			return copyEntry(w, h, body)
		})
	}}
}

func eachEntry(file string, fn func(h *tar.Header, body io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = fn(h, r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
}

// entrySum is equal for entries that unpack to the same, but for their times and extended
// attributes.
func entrySum(h *tar.Header, body io.Reader) (sum [sha256.Size]byte, err error) {
	d := sha256.New()
	fmt.Fprintln(d, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname, h.Devmajor, h.Devminor)
	_, err = io.Copy(d, body)
	return [sha256.Size]byte(d.Sum(nil)), err
}

// Toolchain returns a layer with the Go distribution of this machine in /usr/local/go.
func Toolchain(ctx context.Context) (Layer, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return Layer{}, fmt.Errorf("ask go for its root: %w", err)
	}
	root := strings.TrimSpace(string(out))
	return Layer{CreatedBy: "COPY go /usr/local/go (" + runtime.Version() + ")", Write: func(w *tar.Writer) error {
		if err := add(w, "usr/", "usr/local/"); err != nil {
			return err
		}
		return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			h := tar.Header{Name: filepath.Join("usr/local/go", rel), Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
			switch {
			case d.IsDir():
				h.Name += "/"
				return Add(w, h, "")
			case d.Type() == fs.ModeSymlink:
				h.Typeflag = tar.TypeSymlink
				if h.Linkname, err = os.Readlink(p); err != nil {
					return err
				}
				return Add(w, h, "")
			case !d.Type().IsRegular():
				return nil
			}
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return Add(w, h, string(data))
		})
	}}, nil
}

func copyEntry(w *tar.Writer, h *tar.Header, body io.Reader) error {
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, body)
	return err
}

// Large returns six layers of 1.5 GB and 60,000 files together, as images for building
// programs have them: Debian, compilers and Python, the Go toolchain, many small files,
// edits and whiteouts, and bytes that do not compress.
func Large(ctx context.Context, cache string) ([]Layer, error) {
	base, err := Debian(ctx, cache)
	if err != nil {
		return nil, err
	}
	full, err := Debian(ctx, cache, "build-essential", "clang", "gfortran", "git", "python3-dev")
	if err != nil {
		return nil, err
	}
	toolchain, err := Toolchain(ctx)
	if err != nil {
		return nil, err
	}
	return []Layer{
		base, Added("RUN apt-get install build-essential clang gfortran git python3-dev", base, full), toolchain,
		SmallFiles(20000), {CreatedBy: "RUN rm -rf docs; COPY app /srv/app", Write: addAndRemove}, RandomBytes(150 << 20),
	}, nil
}
