package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"vic/containervm"
)

// Folders of the host are served to a guest by virtiofsd, a process for each, which reads and writes the guest's memory.
// It begins in a mount namespace of its own, where nothing but the folder is put together on RuntimeDir/share, and
// goes on in further namespaces (-o sandbox=namespace) with that as its root, without the right to make devices, under
// seccomp. What is read-only is a read-only mount there, whatever the guest does.
//
// Its connection with QEMU is made before either begins. So a VCH that dies in between leaves nobody who waits, and
// virtiofsd ends with the VM, whoever started it.
const shareDir = "share"

// virtiofsdPlaces is where distributions have the program: it is not meant to be in $PATH.
var virtiofsdPlaces = []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "/usr/libexec/qemu/virtiofsd"}

// virtiofsd finds the program.
func (d *Driver) virtiofsd() (string, error) {
	places := virtiofsdPlaces
	if d.Virtiofsd != "" {
		places = []string{d.Virtiofsd}
	}
	for _, path := range places {
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", errors.New("it takes virtiofsd, which is not installed (Debian has it in qemu-system-common, or virtiofsd)")
}

// CanShare implements containervm.Sharer.
func (d *Driver) CanShare() error {
	if os.Geteuid() != 0 {
		return errors.New("it takes a vic serve that runs as root")
	}
	_, err := d.virtiofsd()
	return err
}

// shares are the processes that serve a VM's shares, and QEMU's ends of their connections.
type shares struct {
	sockets []*os.File
	servers []*os.Process
}

// share starts to serve a VM's shares.
func (d *Driver) share(vm containervm.VM, stderr *os.File) (_ *shares, err error) {
	s := new(shares)
	if len(vm.Shares) == 0 {
		return s, nil
	}
	defer func() {
		if err != nil {
			s.handOver()
			s.end()
		}
	}()
	program, err := d.virtiofsd()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(socket(vm, shareDir), 0o700); err != nil {
		return nil, err
	}
	for i, share := range vm.Shares {
		theirs, ours, err := connection(socket(vm, shareDir+strconv.Itoa(i)))
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", share.Path, err)
		}
		s.sockets = append(s.sockets, ours)
		cmd := exec.Command(program, "--fd=3", "-o", "source="+socket(vm, shareDir), "-o", "sandbox=namespace", "-o", "modcaps=-mknod",
			"-o", "xattr", "-o", "announce_submounts", "-o", "log_level=warn")
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stderr, stderr, []*os.File{theirs}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = startApart(cmd, func() error { return assemble(share, socket(vm, shareDir)) })
		theirs.Close()
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", share.Path, err)
		}
		s.servers = append(s.servers, cmd.Process)
	}
	return s, nil
}

// handOver closes QEMU's ends here.
func (s *shares) handOver() {
	for _, f := range s.sockets {
		f.Close()
	}
	s.sockets = nil
}

// end ends the processes.
func (s *shares) end() {
	for _, p := range s.servers {
		_ = p.Kill() // it can but have ended
		_, _ = p.Wait()
	}
}

// connection makes a listener and one connection to it, which waits to be accepted. The name of the socket is gone then.
func connection(path string) (listener, conn *os.File, err error) {
	if listener, err = listen(path); err != nil {
		return nil, nil, err
	}
	defer os.Remove(path)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		conn, err = c.File()
		c.Close()
	}
	if err != nil {
		listener.Close()
		return nil, nil, err
	}
	return listener, conn, nil
}

// startApart starts a process in a mount namespace of its own, after prepare has changed that.
func startApart(cmd *exec.Cmd, prepare func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, and the namespace stays with the process
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, and /proc/self tells of it. Another is taken while this one is held.
			done <- startApart(cmd, prepare)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = prepare()
		}
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}()
	return <-done
}

// assemble puts on a folder what a share shows.
func assemble(share containervm.Share, stage string) error {
	fi, err := os.Stat(share.Path)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return bind(share.Path, stage, share.ReadOnly)
	}
	if !fi.Mode().IsRegular() {
		return errors.New("neither a folder nor a regular file")
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", 0, "mode=755,size=16k,nr_inodes=4"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	file := filepath.Join(stage, containervm.SharedFile)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := bind(share.Path, file, share.ReadOnly); err != nil {
		return err
	}
	if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make the folder of a file read-only: %w", err)
	}
	return nil
}

// bind mounts source with all that is mounted in it on target.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if !readOnly {
		return nil
	}
	err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}
