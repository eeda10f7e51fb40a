package tether

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vic/tether/guestrpc"
)

const (
	newRoot = "/newroot" // in the initramfs
	// memoryDir is where the files in memory are, in the initramfs. After the
	// switch it is reached through an open directory alone.
	memoryDir = "/files"
)

// mountRoot mounts the root disk beside the initramfs.
func (g *guest) mountRoot() error {
	dev, err := g.devices.disk(g.conf.Root.Serial)
	if err != nil {
		return err
	}
	g.devices.probe() // whatever is mounted later: the modules go when the root is switched
	if err := os.MkdirAll(newRoot, 0755); err != nil {
		return err
	}
	// Writable at first, also where it is to be read-only: its journal may have to
	// be replayed and mount points made.
	if err := unix.Mount(dev, newRoot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount root disk %s: %w", dev, err)
	}
	return nil
}

// switchRoot makes the root disk "/" and gives back the memory of the initramfs. What
// mountSystem has mounted goes along. It returns a directory in memory that is no longer reachable by name.
func (g *guest) switchRoot() (*os.File, error) {
	memory, err := os.Open(memoryDir)
	if err != nil {
		return nil, err
	}
	if g.conf.Later && len(g.conf.NICs) == 0 {
		g.devices.loadFor("virtio_net")
		if guestrpc.Present() {
			g.devices.loadFor("vmxnet3")
		}
	}
	if g.conf.Filters {
		for _, name := range filterModules {
			g.devices.loadFor(name)
		}
	}
	if err := g.devices.close(); err != nil {
		return nil, err
	}
	system := make([]int, len(systemDirs)) // by descriptor: what is mounted there loses its name
	for i, dir := range systemDirs {
		if system[i], err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
		defer unix.Close(system[i])
	}
	if err := os.Chdir(newRoot); err != nil {
		return nil, err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return nil, fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return nil, fmt.Errorf("change root: %w", err)
	}
	for i, dir := range systemDirs {
		at, err := mountPoint(dir)
		if err == nil {
			err = unix.MoveMount(system[i], "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err != nil {
			return nil, fmt.Errorf("move what is mounted on %s: %w", dir, err)
		}
	}
	if err := unix.Fchdir(system[0]); err != nil {
		return nil, err
	}
	return memory, nil
}

// systemDirs are where mountSystem mounts, with whatever is below. The tether's working directory is the first.
var systemDirs = []string{"/proc", "/dev", "/sys"}

// mountSystem mounts what docker's containers find mounted, in the initramfs and before anything is known of
// the container: what is done here is done already in a VM that begins from a template.
func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"proc", "/proc", quiet, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, ""},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=666,mode=620,gid=5"},
		{"mqueue", "/dev/mqueue", quiet, ""},
		{"sysfs", "/sys", quiet, ""},
		{"tmpfs", memoryDir, quiet, "mode=755,size=1m"},
	} {
		if err := mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) { // it is there
			return err
		}
	}
	if err := mountShm(defaultShmSize); err != nil {
		return err
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"}, {"/proc/kcore", "/dev/core"},
	} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return os.Chdir(systemDirs[0])
}

// defaultShmSize is docker's, in bytes.
const defaultShmSize = 64 << 20

const shmFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountShm mounts shared memory of so many bytes; 0 is the default.
func mountShm(size int64) error {
	return mount("shm", "/dev/shm", "tmpfs", shmFlags, fmt.Sprintf("mode=1777,size=%d", cmp.Or(size, defaultShmSize)))
}

// resizeShm gives shared memory of the default size another one, unless that is 0.
func resizeShm(size int64) error {
	if size == 0 || size == defaultShmSize {
		return nil
	}
	if err := unix.Mount("", "/dev/shm", "", unix.MS_REMOUNT|shmFlags, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("resize /dev/shm: %w", err)
	}
	return nil
}

// mountPoint makes a directory to mount on if it is not there.
func mountPoint(dir string) (string, error) {
	dir, err := follow(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0755); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	return dir, nil
}

// mount mounts a file system on a directory that need not be there.
func mount(source, dir, fs string, flags uintptr, data string) error {
	dir, err := mountPoint(dir)
	if err != nil {
		return err
	}
	if err := unix.Mount(source, dir, fs, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fs, dir, err)
	}
	return nil
}

// mountFurther mounts what the configuration asks for.
func (g *guest) mountFurther() error {
	v, err := g.findVolumes()
	if err != nil {
		return err
	}
	if err := v.enlarge(); err != nil {
		g.diagnose(err) // it is as large as it was
	}
	if err := v.fill(g.conf.Mounts); err != nil {
		return err
	}
	for _, m := range g.conf.Mounts {
		flags, data := mountOptions(m.Options)
		if m.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		var err error
		switch {
		case !path.IsAbs(m.Target):
			err = fmt.Errorf("mount target %q is not an absolute path", m.Target)
		case m.Type == "tmpfs":
			err = mount("tmpfs", m.Target, "tmpfs", flags, data)
		case m.Type == "disk":
			err = v.mount(m)
		case m.Type == "share":
			err = mountShare(m)
		default:
			err = fmt.Errorf("mount of type %q on %s", m.Type, m.Target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mountFlags are the options of mount(8) that are flags of mount(2): set, or taken
// away.
var mountFlags = map[string]struct{ set, clear uintptr }{
	"ro":          {set: unix.MS_RDONLY},
	"rw":          {clear: unix.MS_RDONLY},
	"nosuid":      {set: unix.MS_NOSUID},
	"suid":        {clear: unix.MS_NOSUID},
	"nodev":       {set: unix.MS_NODEV},
	"dev":         {clear: unix.MS_NODEV},
	"noexec":      {set: unix.MS_NOEXEC},
	"exec":        {clear: unix.MS_NOEXEC},
	"sync":        {set: unix.MS_SYNCHRONOUS},
	"async":       {clear: unix.MS_SYNCHRONOUS},
	"dirsync":     {set: unix.MS_DIRSYNC},
	"noatime":     {set: unix.MS_NOATIME},
	"atime":       {clear: unix.MS_NOATIME},
	"nodiratime":  {set: unix.MS_NODIRATIME},
	"diratime":    {clear: unix.MS_NODIRATIME},
	"relatime":    {set: unix.MS_RELATIME},
	"norelatime":  {clear: unix.MS_RELATIME},
	"strictatime": {set: unix.MS_STRICTATIME},
	"defaults":    {},
}

// mountOptions splits options into flags and what the file system itself reads.
func mountOptions(options []string) (flags uintptr, data string) {
	var rest []string
	for _, o := range options {
		if f, ok := mountFlags[o]; ok {
			flags = flags&^f.clear | f.set
		} else {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

// follow resolves the symlinks in an absolute path as far as it exists. What it
// returns has none, unless somebody changes the tree meanwhile.
func follow(p string) (string, error) {
	done, rest := "/", strings.Split(path.Clean(p), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, name)
		target, err := os.Readlink(next)
		if err != nil { // no symlink, or nothing at all
			done = next
			continue
		}
		if links++; links > 40 {
			return "", &os.PathError{Op: "resolve", Path: p, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = slices.Concat(strings.Split(target, "/"), rest)
	}
	return done, nil
}

// makeDir makes the working directory if it is not there.
func makeDir(dir string) error {
	if dir == "" {
		return nil
	}
	p, err := follow(dir)
	if err != nil {
		return err
	}
	err = os.MkdirAll(p, 0755)
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("Cannot mkdir: %s is not a directory", dir) // docker's words
	}
	return err
}

// unmountAll leaves every disk clean. What cannot be unmounted, because this process
// stands on it, becomes read-only.
func unmountAll() {
	unix.Sync()
	text, err := os.ReadFile(ownProc("self/mountinfo"))
	if err != nil {
		printk("%v", err)
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		if dir, ok := diskMount(line); ok {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if dir != "/" && unix.Unmount(dir, 0) == nil {
			continue
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			printk("make %s read-only: %v", dir, err)
		}
	}
}

// diskMount takes the mount point out of a line of /proc/self/mountinfo (proc(5)),
// if what is mounted there is on a disk: "36 35 98:0 / /mnt rw - ext4 /dev/vda rw".
func diskMount(line string) (string, bool) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 5 || len(g) < 2 || !strings.HasPrefix(g[1], "/dev/") {
		return "", false
	}
	return mountinfoEscapes.Replace(f[4]), true
}

var mountinfoEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
