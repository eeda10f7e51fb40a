package tether

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// cover hides and protects paths, those below /proc if inProc and else the others: /proc is
// mounted anew at each start.
func (g *guest) cover(inProc bool) error {
	for _, p := range g.conf.Masked {
		if strings.HasPrefix(p, "/proc/") == inProc {
			if err := mask(p); err != nil {
				return fmt.Errorf("mask %s: %w", p, err)
			}
		}
	}
	for _, p := range g.conf.ReadOnly {
		if strings.HasPrefix(p, "/proc/") == inProc {
			if err := protect(p); err != nil {
				return fmt.Errorf("make %s read-only: %w", p, err)
			}
		}
	}
	return nil
}

// mask puts nothing over a file or a directory.
func mask(p string) error {
	p, err := follow(p)
	if err != nil {
		return err
	}
	fi, err := os.Stat(p)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.IsDir():
		return unix.Mount("tmpfs", p, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=0k,nr_inodes=1")
	}
	return unix.Mount("/dev/null", p, "", unix.MS_BIND, "")
}

// protect makes what is mounted at p read-only, or if nothing is, p itself.
func protect(p string) error {
	p, err := follow(p)
	if err != nil {
		return err
	}
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		err = unix.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(p, &fs); err != nil {
		return err
	}
	// A remount sets all flags; those that are there are to stay (their numbers are those of MS_, statfs(2)).
	const kept = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME
	return unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|uintptr(fs.Flags)&kept, "")
}
