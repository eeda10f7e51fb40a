// Package boot makes what a container VM boots from: a Linux kernel, an initramfs that
// holds the tether and the kernel modules it may need, and, for hypervisors that cannot
// be given those two directly, a bootable ISO of the same files.
//
// The kernel is an installed one (/boot/vmlinuz-VERSION with /lib/modules/VERSION) or
// any other with its module folder, such as Photon OS's linux-esx. Where it offers the
// PVH entry point, the uncompressed kernel is taken out of its bzImage: QEMU then skips
// the decompression in the guest, which costs 0.15 s under emulation.
//
// The initramfs is an uncompressed cpio archive (newc, kernel
// Documentation/driver-api/early-userspace/buffer-format.rst), since decompressing costs
// the guest more than reading:
//
//	/init            the tether
//	/dev/console     so that init has its standard streams
//	/modules/NAME.ko the modules, uncompressed, without signatures where the kernel asks for none
//	/modules/index   which to load for what hardware, a line each:
//	                     NAME DEPENDENCIES ALIASES
//	                 dependencies are names joined by commas in the order to load them, or
//	                 "-"; aliases, separated by spaces, are patterns (path.Match) that the
//	                 modalias of a device matches, or "*" for a module to load always
//
// Everything is a pure function of its input files: the same files give the same bytes.
package boot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// cmdline saves 0.4 to 0.6 s of booting under emulation: no crypto self-tests, no
// randomised addresses, no patching for one processor, none of tracefs's ten thousand
// files, which containers do not see anyway.
//
// no_timer_check: the kernel counts timer interrupts for ten ticks of the host's time (timer_irq_works in
// arch/x86/kernel/apic/io_apic.c). A busy host delivers too few, and after four ways of connecting the
// timer the kernel panics. What virtual machines have needs no check.
//
// dummy.numdummies: a kernel with that driver built in makes an interface dummy0 that nobody asked for.
const cmdline = "console=ttyS0 quiet cryptomgr.notests nokaslr noreplace-smp no_timer_check initcall_blacklist=tracer_init_tracefs dummy.numdummies=0 panic=-1"

// Options name the files to build from.
type Options struct {
	// Kernel is a bzImage or an ELF kernel. "" means the newest that is installed, with
	// its modules.
	Kernel string
	// Modules is the folder with modules.dep. "" means /lib/modules/VERSION, by the
	// version in Kernel.
	Modules string
	// Tether is the static binary that runs as PID 1.
	Tether string
	// ISOLINUX and LDLINUX are the boot loader's files isolinux.bin and ldlinux.c32, for
	// WriteISO. "" means where Debian's packages isolinux and syslinux-common put them.
	ISOLINUX, LDLINUX string
}

// A Medium is what a VM boots from, as files.
type Medium struct {
	Kernel  string // for a direct boot: an ELF kernel with a PVH entry, or the bzImage
	Image   string // the bzImage, for boot loaders
	Initrd  string
	Cmdline string // kernel parameters
	Version string // of the kernel

	// Key, and Release, are files at the root of an ISO, by these names in capitals; "" is none. Key is a further archive for
	// the kernel.
	Key, Release string
}

// Build makes the medium of a container VM in a folder below dir that is named by the hash of all that goes
// into it, unless it is there already. A crash leaves at most a folder whose name starts
// with "tmp-".
func Build(ctx context.Context, dir string, o Options) (*Medium, error) {
	k, err := findKernel(o)
	if err != nil {
		return nil, err
	}
	c := contents{cmdline: cmdline}
	if err := c.addKernel(k); err != nil {
		return nil, err
	}
	if c.init, err = readProgram(o.Tether); err != nil {
		return nil, err
	}
	return c.build(ctx, dir)
}

// contents are what a medium is made of.
type contents struct {
	kernel       kernel
	image        []byte // of the kernel
	init         []byte // PID 1
	mods         []module
	files        []entry // further ones of the initramfs
	cmdline      string
	key, release []byte // see Medium; nil is none
}

// addKernel reads a kernel and the modules that its VMs may need.
func (c *contents) addKernel(k kernel, further ...string) (err error) {
	c.kernel = k
	if c.image, err = os.ReadFile(k.path); err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	if c.mods, err = collectModules(k.modules, further...); err != nil {
		return fmt.Errorf("collect modules of kernel %s: %w", k.version, err)
	}
	if !k.needsSignatures() {
		for i := range c.mods {
			c.mods[i].code = unsigned(c.mods[i].code)
		}
	}
	return nil
}

// build writes the medium, unless it is there.
func (c *contents) build(ctx context.Context, dir string) (*Medium, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := filepath.Join(dir, c.fingerprint())
	m := &Medium{
		Kernel: filepath.Join(out, "kernel"), Image: filepath.Join(out, "vmlinuz"), Initrd: filepath.Join(out, "initrd"),
		Cmdline: c.cmdline, Version: c.kernel.version,
	}
	files := map[string]func(io.Writer) error{"kernel": c.writeKernel, "vmlinuz": writes(c.image), "initrd": c.writeInitramfs}
	if c.key != nil {
		m.Key, files["key"] = filepath.Join(out, "key"), writes(c.key)
	}
	if c.release != nil {
		m.Release, files["release"] = filepath.Join(out, "release"), writes(c.release)
	}
	return m, makeFolder(out, files)
}

// writeKernel writes the kernel for a direct boot.
func (c *contents) writeKernel(w io.Writer) error {
	kernel, err := pvhKernel(c.image)
	if err != nil {
		return fmt.Errorf("unpack kernel %s: %w", c.kernel.path, err)
	}
	if kernel == nil {
		kernel = c.image
	}
	_, err = w.Write(kernel)
	return err
}

func writes(p []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(p); return err }
}

// makeFolder makes a folder with these files, unless it is there.
func makeFolder(out string, files map[string]func(io.Writer) error) error {
	dir := filepath.Dir(out)
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0755); err != nil {
		return err
	}
	for name, write := range files {
		if err := writeFile(filepath.Join(tmp, name), write); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, out); err != nil && !errors.Is(err, os.ErrExist) {
		if _, statErr := os.Stat(out); statErr != nil { // nobody else has made it meanwhile
			return err
		}
	}
	return syncDir(dir)
}

// readProgram reads a binary and refuses what a kernel without shared libraries
// cannot run.
func readProgram(path string) ([]byte, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	if err := checkStatic(p); err != nil {
		return nil, fmt.Errorf("program %s: %w", path, err)
	}
	return p, nil
}

// fingerprint hashes what a medium is made of, and the way it is made.
func (c *contents) fingerprint() string {
	h := sha256.New()
	io.WriteString(h, "vic boot medium 1\n")
	add := func(name string, p []byte) {
		fmt.Fprintf(h, "%s %d\n", name, len(p))
		h.Write(p)
	}
	add("kernel", c.image)
	add("tether", c.init)
	for _, m := range c.mods {
		add(m.indexLine(), m.code)
	}
	for _, f := range c.files {
		add(fmt.Sprintf("file %s %o", f.path, f.mode), f.data)
	}
	if c.key != nil {
		add("key", c.key)
	}
	if c.release != nil {
		add("release", c.release)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// writeFile writes and syncs a new file.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
