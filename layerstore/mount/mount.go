package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vic/layerstore"
)

// Options are how Mount shows a store.
type Options struct {
	// AllowOther lets other users than the one who mounts look inside, each at what the files'
	// owners, modes and ACLs let him see; disk.raw is root's. By default the one who mounts sees
	// all and nobody else anything.
	AllowOther bool
	// Log gets what nobody is there to be told. nil is silent.
	Log *slog.Logger
}

// ErrBusy is the error of an Unmount while somebody uses a file or has his working directory
// there.
var ErrBusy = errors.New("in use")

// fsType is the type by which the system's list of mounts has ours.
const fsType = "fuse.vic"

// readAhead is how far the kernel reads ahead in KiB, where this process may say so; else it
// is 128.
const readAhead = "1024"

// A View is a store that is mounted.
type View struct {
	dir     string
	server  *server
	done    chan struct{}
	stop    context.CancelFunc
	waiting sync.WaitGroup
}

// Recover unmounts from dir a view whose process has died, if there is one, and tells whether
// there was. A dead mount of another program is an error, as is a living view.
func Recover(dir string) (bool, error) {
	dir, err := resolve(dir)
	if err != nil {
		return false, err
	}
	typ, err := mounted(dir)
	if err != nil || typ == "" {
		return false, err
	}
	err = unix.Statfs(dir, new(unix.Statfs_t)) // the kernel does not answer it alone
	switch {
	case err != unix.ENOTCONN && typ == fsType:
		return false, fmt.Errorf("%s has a store mounted already: fusermount3 -u %s unmounts it", dir, dir)
	case err != unix.ENOTCONN:
		return false, nil // what else is mounted here is for Mount to look at
	case typ != fsType:
		return false, fmt.Errorf("%s has a mount of type %s whose program has died: fusermount3 -u %s unmounts it", dir, typ, dir)
	}
	if err := unmount(dir, true); err != nil {
		return false, fmt.Errorf("unmount what a process that died left: %w", err)
	}
	return true, nil
}

// resolve returns the absolute path of a folder without symlinks, as the system's list of
// mounts has it. The folder itself may be a dead mount.
func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	return filepath.Join(parent, filepath.Base(dir)), err
}

// mounted returns the type of the file system that is mounted at dir, "" if none is.
func mounted(dir string) (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	typ := ""
	for line := range strings.Lines(string(b)) { // proc_pid_mountinfo(5)
		mount, rest, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if ok && len(fields) > 4 && unescape.Replace(fields[4]) == dir {
			typ, _, _ = strings.Cut(rest, " ") // the last is on top
		}
	}
	return typ, nil
}

// Mount shows a store at dir, an empty folder, until Unmount, or until somebody else unmounts
// it. The store stays open until Wait has returned.
func Mount(s *layerstore.Store, dir string, o Options) (*View, error) {
	store, err := resolve(s.Dir())
	if err != nil {
		return nil, err
	}
	return MountSource(localSource{s}, store, dir, o)
}

// MountSource is Mount for a store of any kind. Name is its folder if it has one on this machine, and what the system's list of mounts calls it.
func MountSource(s Source, name, dir string, o Options) (*View, error) {
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	if err := suitable(name, dir); err != nil {
		return nil, err
	}
	if o.AllowOther {
		if err := mayAllowOther(); err != nil {
			return nil, err
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &View{dir: dir, server: newServer(s, o.Log), done: make(chan struct{})}
	options := &fuse.MountOptions{
		Name: "vic", FsName: name, Options: []string{"ro"},
		AllowOther: o.AllowOther, EnableAcl: o.AllowOther,
		MaxWrite: requestSize, MaxBackground: 64,
		EnableSymlinkCaching: true, ExplicitDataCacheControl: true,
		DirectMount: true, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY,
		PanicHandler: v.server.recovered,
		// It tells of each reply that nobody waits for any more.
		Logger: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	if o.AllowOther {
		options.Options = append(options.Options, "default_permissions")
	}
	if v.server.kernel, err = fuse.NewServer(v.server, dir, options); err != nil {
		return nil, fmt.Errorf("mount at %s: %w", dir, explain(err))
	}
	ctx, stop := context.WithCancel(context.Background())
	v.stop = stop
	v.waiting.Go(v.server.kernel.Serve)
	v.waiting.Go(func() { v.server.watch(ctx) })
	go func() {
		v.server.kernel.Wait()
		stop()
		v.waiting.Wait()
		v.server.forest.closeAll()
		close(v.done)
	}()
	if err := v.server.kernel.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount at %s: %w", dir, err), v.Detach())
	}
	v.setReadAhead()
	return v, nil
}

// suitable says why the store in a folder cannot be shown at dir; nil if it can.
func suitable(store, dir string) error {
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: make the folder first", err)
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("%s is not empty: what is in it would be hidden", dir)
	}
	if strings.HasPrefix(dir+"/", store+"/") {
		return fmt.Errorf("%s is in the store itself", dir)
	}
	return nil
}

// mayAllowOther says why fusermount would not let other users in; nil if it would.
func mayAllowOther() error {
	if os.Geteuid() == 0 {
		return nil
	}
	const conf = "/etc/fuse.conf"
	b, err := os.ReadFile(conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range bytes.Lines(b) {
		if string(bytes.TrimSpace(line)) == "user_allow_other" {
			return nil
		}
	}
	return fmt.Errorf("to let other users in takes root, or the line user_allow_other in %s", conf)
}

// explain adds to why a mount failed what may be done about it.
func explain(err error) error {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		if _, e := os.Stat("/dev/fuse"); e != nil {
			return fmt.Errorf("%w: this kernel has no FUSE (modprobe fuse)", e)
		}
		return fmt.Errorf("%w: without root it takes fusermount3, of the package fuse3", err)
	}
	return err
}

// setReadAhead makes the kernel read further ahead, which is for root to say.
func (v *View) setReadAhead() {
	var st unix.Stat_t
	if unix.Stat(v.dir, &st) == nil {
		// Without it reads are slower, no more.
		os.WriteFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)), []byte(readAhead), 0)
	}
}

// Done is closed once the view is unmounted and nobody uses a file of it.
func (v *View) Done() <-chan struct{} { return v.done }

// Unmount takes the view down and waits for its end. If somebody uses it, the error is ErrBusy
// and nothing has changed.
func (v *View) Unmount() error {
	if err := unmount(v.dir, false); err != nil {
		return fmt.Errorf("unmount %s: %w", v.dir, err)
	}
	<-v.done
	return nil
}

// Detach takes the view out of the file tree. What is open stays readable until Done.
func (v *View) Detach() error {
	if err := unmount(v.dir, true); err != nil {
		return fmt.Errorf("detach %s: %w", v.dir, err)
	}
	return nil
}

// unmount unmounts dir, with fusermount if it must.
func unmount(dir string, detach bool) error {
	flags, args := unix.UMOUNT_NOFOLLOW, []string{"-u", "--", dir}
	if detach {
		flags, args = flags|unix.MNT_DETACH, append([]string{"-z"}, args...)
	}
	switch err := unix.Unmount(dir, flags); {
	case err == unix.EBUSY:
		return ErrBusy
	case err != unix.EPERM:
		return err
	}
	var bin string
	var err error
	for _, name := range []string{"fusermount3", "fusermount"} {
		if bin, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	out, err := exec.Command(bin, args...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("busy")):
		return ErrBusy
	}
	return fmt.Errorf("%s: %w: %s", bin, err, bytes.TrimSpace(out))
}
