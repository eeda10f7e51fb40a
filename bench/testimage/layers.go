package testimage

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Edits returns layers for the top of Debian that do what the lines of a Dockerfile do
// to the disks: add, change, remove, replace, link and re-own.
func Edits() []Layer {
	return []Layer{
		{CreatedBy: "COPY app /srv/app", Write: addApp},
		{CreatedBy: "RUN rm -rf docs, move the shell's start files", Write: removeDocs},
		{CreatedBy: "RUN replace a directory by a file and a file by a directory", Write: replaceKinds},
		{CreatedBy: "RUN ln, mknod, chown -R /srv/app", Write: linkAndOwn},
	}
}

func addApp(w *tar.Writer) error {
	if err := add(w, "srv/", "srv/app/", "srv/app/data/", "srv/app/cache/"); err != nil {
		return err
	}
	for i := range 200 {
		if err := Add(w, tar.Header{Name: fmt.Sprintf("srv/app/data/%03d.txt", i)}, strings.Repeat(fmt.Sprintf("line of file %d\n", i), i*7)); err != nil {
			return err
		}
	}
	if err := Add(w, tar.Header{Name: "srv/app/run", Mode: 0755}, "#!/bin/sh\necho running as $(id -u) in $PWD\n"); err != nil {
		return err
	}
	if err := Add(w, tar.Header{Name: "srv/app/ping", Mode: 04755, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.note":           "kept with the file",
	}}, "not really\n"); err != nil {
		return err
	}
	return Add(w, tar.Header{Name: "srv/app/cache/old"}, "of the first layer\n")
}

func removeDocs(w *tar.Writer) error {
	if err := removeSystemDocs(w); err != nil {
		return err
	}
	if err := add(w, "srv/", "srv/app/", "srv/app/cache/"); err != nil {
		return err
	}
	return files(w, "srv/app/cache/.wh..wh..opq", "", "srv/app/cache/new", "of the second\n", "srv/app/data/.wh.000.txt", "")
}

func removeSystemDocs(w *tar.Writer) error {
	if err := add(w, "usr/", "usr/share/", "usr/share/man/", "etc/", "etc/skel/"); err != nil {
		return err
	}
	return files(w, "usr/share/.wh.doc", "", "usr/share/man/.wh..wh..opq", "", "usr/share/man/README", "no manuals here\n",
		"etc/skel/.wh..bash_logout", "", "etc/skel/.wh..profile", "")
}

// addAndRemove does in one layer what Edits does to Debian in two.
func addAndRemove(w *tar.Writer) error {
	if err := removeSystemDocs(w); err != nil {
		return err
	}
	return addApp(w)
}

func replaceKinds(w *tar.Writer) error {
	if err := add(w, "srv/", "srv/app/", "srv/app/data/", "srv/app/data/001.txt/"); err != nil {
		return err
	}
	return files(w, "srv/app/data/001.txt/inside", "was a file\n", "srv/app/cache", "was a directory\n",
		"srv/app/data/002.txt", "changed\n", "usr/share/doc", "a file where a directory was removed\n")
}

func linkAndOwn(w *tar.Writer) error {
	for _, h := range []tar.Header{
		{Name: "srv/app/", Uid: 1000, Gid: 1000},
		{Name: "srv/app/data/", Uid: 1000, Gid: 70000, Mode: 02775},
		{Name: "srv/app/hosts", Typeflag: tar.TypeSymlink, Linkname: "/etc/hosts", Uid: 1000},
		{Name: "srv/app/long", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 30) + "etc/debian_version"},
		{Name: "srv/app/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0666},
		{Name: "srv/app/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0660},
		{Name: "srv/app/fifo", Typeflag: tar.TypeFifo},
	} {
		if err := Add(w, h, ""); err != nil {
			return err
		}
	}
	for i := 4; i < 200; i++ { // the same contents under another owner
		h := tar.Header{Name: fmt.Sprintf("srv/app/data/%03d.txt", i), Uid: 1000, Gid: 1000}
		if err := Add(w, h, strings.Repeat(fmt.Sprintf("line of file %d\n", i), i*7)); err != nil {
			return err
		}
	}
	return nil
}

// LowerLink returns a layer that gives a file of Edits another name without shipping
// the file. The specification allows it; containerd cannot apply it.
func LowerLink() Layer {
	return Layer{CreatedBy: "RUN ln /srv/app/data/003.txt", Write: func(w *tar.Writer) error {
		return Add(w, tar.Header{Name: "srv/app/data/alias.txt", Typeflag: tar.TypeLink, Linkname: "srv/app/data/003.txt"}, "")
	}}
}

// SmallFiles returns a layer of n files of up to 4 KiB in directories of 100, as
// package managers leave them.
func SmallFiles(n int) Layer {
	return Layer{CreatedBy: fmt.Sprintf("RUN npm install (%d files)", n), Write: func(w *tar.Writer) error {
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		if err := add(w, "usr/", "usr/lib/", "usr/lib/node_modules/"); err != nil {
			return err
		}
		for i := range n {
			dir := fmt.Sprintf("usr/lib/node_modules/module-%04d/", i/100)
			if i%100 == 0 {
				if err := add(w, dir); err != nil {
					return err
				}
			}
			var b strings.Builder
			for b.Len() < rng.IntN(4096) {
				fmt.Fprintf(&b, "exports.f%x = (x) => x + %d;\n", rng.Uint32(), rng.IntN(1000))
			}
			if err := Add(w, tar.Header{Name: fmt.Sprintf("%sindex-%02d.js", dir, i%100)}, b.String()); err != nil {
				return err
			}
		}
		return nil
	}}
}

// RandomBytes returns a layer with one file of n bytes that nothing can compress.
func RandomBytes(n int) Layer {
	return Layer{CreatedBy: "COPY model.bin /srv", Write: func(w *tar.Writer) error {
		p := make([]byte, n)
		rand.NewChaCha8([32]byte{7}).Read(p)
		return Add(w, tar.Header{Name: "srv/model.bin"}, string(p))
	}}
}

// add writes directories.
func add(w *tar.Writer, dirs ...string) error {
	for _, d := range dirs {
		if err := Add(w, tar.Header{Name: d}, ""); err != nil {
			return err
		}
	}
	return nil
}

// files writes files given as name, contents, name, contents…
func files(w *tar.Writer, pairs ...string) error {
	for ; len(pairs) > 0; pairs = pairs[2:] {
		if err := Add(w, tar.Header{Name: pairs[0]}, pairs[1]); err != nil {
			return err
		}
	}
	return nil
}
