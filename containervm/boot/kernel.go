package boot

import (
	"bytes"
	"compress/bzip2"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxKernel bounds what a kernel may unpack to.
const maxKernel = 1 << 30

var le = binary.LittleEndian

// A kernel is one on this machine.
type kernel struct {
	path, version, modules string
}

// findKernel returns the kernel that the options name, or the newest installed one.
func findKernel(o Options) (kernel, error) {
	if o.Kernel == "" {
		return newestKernel("/boot", "/lib/modules")
	}
	k := kernel{path: o.Kernel, modules: o.Modules}
	f, err := os.Open(o.Kernel)
	if err != nil {
		return k, fmt.Errorf("open kernel: %w", err)
	}
	defer f.Close()
	k.version, err = imageVersion(f)
	if k.modules != "" {
		if err != nil {
			k.version = filepath.Base(filepath.Clean(k.modules)) // an ELF kernel does not say
		}
		return k, nil
	}
	if err != nil {
		return k, fmt.Errorf("kernel %s: %w: name its module folder", o.Kernel, err)
	}
	k.modules = filepath.Join("/lib/modules", k.version)
	return k, nil
}

// newestKernel looks for bzImages with modules.
func newestKernel(boot, modules string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(boot, "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	var best kernel
	for _, p := range images {
		k := kernel{path: p, version: strings.TrimPrefix(filepath.Base(p), "vmlinuz-")}
		k.modules = filepath.Join(modules, k.version)
		if _, err := os.Stat(filepath.Join(k.modules, "modules.dep")); err != nil {
			continue
		}
		if best.path == "" || compareVersions(k.version, best.version) > 0 {
			best = k
		}
	}
	if best.path == "" {
		return best, fmt.Errorf("no kernel for guests: none in %s has modules in %s; install one (on Debian: apt-get install linux-image-cloud-amd64) or name a kernel and its module folder", boot, modules)
	}
	return best, nil
}

// compareVersions compares runs of digits as numbers and all else as text.
func compareVersions(a, b string) int {
	split := func(s string) []string {
		return strings.FieldsFunc(s, func(r rune) bool { return r == '.' || r == '-' || r == '+' || r == '_' })
	}
	return slices.CompareFunc(split(a), split(b), func(x, y string) int {
		n, err := strconv.Atoi(x)
		m, err2 := strconv.Atoi(y)
		if err == nil && err2 == nil {
			return n - m
		}
		return strings.Compare(x, y)
	})
}

var errNotBzImage = errors.New("not a bzImage")

// imageVersion reads the version string of a bzImage (Documentation/arch/x86/boot.rst:
// magic at 0x202, kernel_version at 0x20e).
func imageVersion(r io.ReaderAt) (string, error) {
	var head [0x250]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return "", errNotBzImage
	}
	if string(head[0x202:0x206]) != "HdrS" {
		return "", errNotBzImage
	}
	var text [256]byte
	n, err := r.ReadAt(text[:], int64(le.Uint16(head[0x20e:]))+0x200)
	if err != nil && err != io.EOF {
		return "", err
	}
	version, _, _ := strings.Cut(string(text[:n]), " ")
	if version == "" || strings.ContainsAny(version, "/\x00") {
		return "", fmt.Errorf("bzImage without a version")
	}
	return version, nil
}

// pvhKernel takes the ELF kernel out of a bzImage, nil if it has no PVH entry. An ELF
// kernel is returned as it is.
func pvhKernel(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, nil
	}
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errNotBzImage
	}
	setup := int64(image[0x1f1])
	if setup == 0 {
		setup = 4
	}
	base := (setup + 1) * 512
	off, n := int64(le.Uint32(image[0x248:])), int64(le.Uint32(image[0x24c:]))
	if off == 0 || n < 8 || base+off+n > int64(len(image)) {
		return nil, fmt.Errorf("payload of %d bytes at %d is outside the image", n, base+off)
	}
	payload := image[base+off : base+off+n]
	// The payload's last four bytes are its unpacked size (scripts/Makefile.lib size_append),
	// except in gzip, which ends so by itself.
	size := int64(le.Uint32(payload[n-4:]))
	if size > maxKernel {
		return nil, fmt.Errorf("unpacks to %d bytes", size)
	}
	r, err := unpacker(payload)
	if err != nil {
		return nil, err
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, fmt.Errorf("unpack payload: %w", err)
	}
	if !hasPVH(out) {
		return nil, nil
	}
	return out, nil
}

// unpacker reads a kernel's payload by its magic number (lib/decompress.c).
func unpacker(p []byte) (io.Reader, error) {
	body := bytes.NewReader(p[:len(p)-4])
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		return lz4.NewReader(body), nil
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		return gzip.NewReader(bytes.NewReader(p))
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(body)
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(body)
	case bytes.HasPrefix(p, []byte{0x5d, 0, 0}):
		return lzma.NewReader(body)
	case bytes.HasPrefix(p, []byte("BZh")):
		return bzip2.NewReader(body), nil
	}
	return nil, fmt.Errorf("payload is compressed in a way we do not know (starts with % x)", p[:4])
}

// hasPVH looks for the ELF note that names the PVH entry point, XEN_ELFNOTE_PHYS32_ENTRY
// (xen/include/public/elfnote.h).
func hasPVH(image []byte) bool {
	const phys32Entry = 18
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return false
		}
		for len(notes) >= 12 {
			nameLen, descLen, typ := int(le.Uint32(notes)), int(le.Uint32(notes[4:])), le.Uint32(notes[8:])
			notes = notes[12:]
			if nameLen > len(notes) || descLen > len(notes) {
				break
			}
			if typ == phys32Entry && strings.TrimRight(string(notes[:nameLen]), "\x00") == "Xen" {
				return true
			}
			skip := (nameLen+3)&^3 + (descLen+3)&^3
			notes = notes[min(skip, len(notes)):]
		}
	}
	return false
}

// checkStatic refuses a program that is not static, or not for this kind of machine.
func checkStatic(p []byte) error {
	f, err := elf.NewFile(bytes.NewReader(p))
	if err != nil {
		return fmt.Errorf("not an ELF program: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("built for %s, guests are x86-64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("needs a dynamic loader: build it with CGO_ENABLED=0")
		}
	}
	return nil
}
