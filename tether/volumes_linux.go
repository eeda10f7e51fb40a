package tether

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"unsafe"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// volumes are the disks of a container beside its root, by serial number.
type volumes map[string]*volume

// A volume is one of them. All its mounts are of one superblock, which is writable or not.
type volume struct {
	device   string
	writable bool
	grow     bool
}

// findVolumes waits for the disks that the configuration mounts.
func (g *guest) findVolumes() (volumes, error) {
	all := volumes{}
	for _, m := range g.conf.Mounts {
		if m.Type != "disk" {
			continue
		}
		v := all[m.Serial]
		if v == nil {
			dev, err := g.devices.disk(m.Serial)
			if err != nil {
				return nil, err
			}
			v = &volume{device: dev}
			all[m.Serial] = v
		}
		v.grow = v.grow || m.Grow
		v.writable = v.writable || !m.ReadOnly || m.Copy || m.Replay
	}
	return all, nil
}

// ioctlResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): the file system's new size in blocks.
const ioctlResizeFS = 0x40086610

// enlarge has file systems take all of their disks that are to. The kernel does it, beside whoever uses them.
func (vs volumes) enlarge() error {
	for _, v := range vs {
		if !v.grow || !v.writable {
			continue
		}
		if err := v.enlarge(); err != nil {
			return fmt.Errorf("enlarge file system of %s: %w", v.device, err)
		}
	}
	return nil
}

func (v *volume) enlarge() error {
	dev, err := os.Open(v.device)
	if err != nil {
		return err
	}
	defer dev.Close()
	size, err := dev.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const blockSize, groupSize, tail = 4096, 32768, 1024 // a group at the end needs room for its own tables
	blocks := uint64(size / blockSize)
	if blocks%groupSize < tail {
		blocks -= blocks % groupSize
	}
	if now, err := blockCount(dev); err != nil || now >= blocks {
		return err
	}
	f, err := v.open(false)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.Open(ownProc(fmt.Sprintf("self/fd/%d", f.Fd()))) // f was opened as a path
	if err != nil {
		return err
	}
	defer root.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), ioctlResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return errno
	}
	return nil
}

// blockCount reads how large an ext4 is, from s_blocks_count_lo and _hi of its superblock (Linux,
// Documentation/filesystems/ext4/super.rst).
func blockCount(dev io.ReaderAt) (uint64, error) {
	var super [1024]byte
	if _, err := dev.ReadAt(super[:], 1024); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	return uint64(le.Uint32(super[0x4:])) | uint64(le.Uint32(super[0x150:]))<<32, nil
}

// open makes a mount of the volume's file system that is nowhere in the tree of names.
func (v *volume) open(readOnly bool) (*os.File, error) {
	return openFS("ext4", v.device, !v.writable, readOnly)
}

// openFS makes a mount of a file system that is nowhere in the tree of names. Whoever mounts the same source
// again gets another mount of the same superblock, which is frozen read-only or not.
func openFS(kind, source string, frozen, readOnly bool) (*os.File, error) {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system %s: %w", kind, err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, "source", source); err != nil {
		return nil, fmt.Errorf("mount %s %s: %w", kind, source, err)
	}
	if frozen {
		if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
			return nil, fmt.Errorf("mount %s %s read-only: %w", kind, source, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("mount %s %s: %w%s", kind, source, err, fsMessage(fd))
	}
	attributes := 0
	if readOnly {
		attributes = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("mount %s %s: %w", kind, source, err)
	}
	return os.NewFile(uintptr(m), source), nil
}

// fsMessage is what the kernel has to say of a file system that it did not mount.
func fsMessage(fd int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fd, buf)
	if err != nil || n < 2 {
		return ""
	}
	return ": " + unix.ByteSliceToString(buf[2:n]) // behind "e ", its level
}

// mount mounts a volume, or what m wants of it.
func (vs volumes) mount(m wire.Mount) error {
	f, err := vs[m.Serial].open(m.ReadOnly)
	if err != nil {
		return err
	}
	return attachPart(f, m)
}

// mountShare mounts a folder of the host, or what m wants of it.
func mountShare(m wire.Mount) error {
	f, err := openFS("virtiofs", m.Serial, m.ReadOnly, m.ReadOnly)
	if err != nil {
		return err
	}
	return attachPart(f, m)
}

// attachPart puts a mount, or what m wants of it, where m says, and closes f.
func attachPart(f *os.File, m wire.Mount) error {
	defer f.Close()
	if m.Subpath == "" {
		return attach(f, m.Target)
	}
	part, err := subtree(f, m.Subpath)
	switch {
	case errors.Is(err, unix.EXDEV): // in Docker's words
		return fmt.Errorf("mount on %s: path concatenation escapes the base directory, subpath: %s", m.Target, m.Subpath)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("mount on %s: cannot access path %s: %w", m.Target, m.Subpath, err)
	case err != nil:
		return fmt.Errorf("mount %s on %s: %w", m.Subpath, m.Target, err)
	}
	defer part.Close()
	return attach(part, m.Target)
}

// staging is where a file system is while a part of it is taken.
const staging = "/dev/shm/.vic-volume"

// subtree returns a mount of what is at a path of a file system whose mount f is nowhere in the tree of names. It is
// put there for that time: the kernel clones only what is there.
func subtree(f *os.File, sub string) (_ *os.File, err error) {
	if err := os.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if removeErr := os.Remove(staging); err == nil {
			err = removeErr
		}
	}()
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, staging, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, err
	}
	defer func() {
		if unmountErr := unix.Unmount(staging, unix.MNT_DETACH); err == nil {
			err = unmountErr
		}
	}()
	at, err := unix.Openat2(int(f.Fd()), sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	tree, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(tree), sub), nil
}

// attach puts a mount onto target, which is made if it is not there: a folder or a file, as the mount is.
func attach(f *os.File, target string) error {
	target, err := follow(target)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = makeFile(target)
	}
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on %s: %w", target, err)
	}
	return nil
}

// makeFile makes an empty file to mount another on, if there is nothing.
func makeFile(target string) error {
	if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if os.IsExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
