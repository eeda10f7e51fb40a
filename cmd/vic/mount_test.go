package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

// A mounting is a vic mount in a process of its own.
type mounting struct {
	cmd    *exec.Cmd
	out    io.Reader
	errOut bytes.Buffer // read only after wait
}

// startMount starts vic mount and waits until it says that it is ready.
func startMount(t *testing.T, cmd *exec.Cmd, store, dir string, flags ...string) *mounting {
	t.Helper()
	return startMounting(t, cmd, dir, append(flags, "--store", store)...)
}

// startMounting is startMount of any store, which is among the flags.
func startMounting(t *testing.T, cmd *exec.Cmd, dir string, flags ...string) *mounting {
	t.Helper()
	cmd.Args = append(append(cmd.Args, "mount", dir), flags...)
	cmd.Env = append(os.Environ(), asVic+"=1")
	m := &mounting{cmd: cmd}
	cmd.Stderr = &m.errOut
	var err error
	if m.out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
			exec.Command("umount", "-l", dir).Run()
		}
	})
	var line [1]byte
	for text := ""; !strings.Contains(text, "\n"); text += string(line[:]) {
		if _, err := m.out.Read(line[:]); err != nil {
			cmd.Wait()
			t.Fatalf("vic mount: %v\n%s", err, m.errOut.String())
		}
	}
	return m
}

// wait waits for the end of the process.
func (m *mounting) wait() error {
	io.Copy(io.Discard, m.out)
	return m.cmd.Wait()
}

// storeWithBusybox pulls a busybox image into a new store.
func storeWithBusybox(t *testing.T, dir string) string {
	t.Helper()
	oracle.Need(t, "docker-registry", "busybox", "fusermount3")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		oracle.Missing(t, err)
	}
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "none"))
	registry, err := testimage.StartRegistry(t.Context(), filepath.Join(dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Stop()
	layer, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Push(t.Context(), "lib/bb:1", img)
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	if _, errOut, err := vic(t, "pull", "--store", store, ref); err != nil {
		t.Fatalf("pull: %v\n%s", err, errOut)
	}
	return store
}

// readPasswd reads a file of the only image.
func readPasswd(dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "images/*/lib/bb:1/rootfs/etc/passwd"))
	if err != nil || len(found) != 1 {
		return "", os.ErrNotExist
	}
	b, err := os.ReadFile(found[0])
	return string(b), err
}

func wantPasswd(t *testing.T, dir string) {
	t.Helper()
	if s, err := readPasswd(dir); err != nil || !strings.HasPrefix(s, "root:") {
		t.Errorf("etc/passwd: %q, %v", s, err)
	}
}

func TestMount(t *testing.T) {
	work := t.TempDir()
	store := storeWithBusybox(t, work)
	dir := filepath.Join(work, "link", "view")
	if err := errors.Join(os.Mkdir(filepath.Join(work, "real"), 0o755), os.Symlink("real", filepath.Join(work, "link")), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	self := func() *exec.Cmd { return exec.Command("/proc/self/exe") }

	m := startMount(t, self(), store, dir)
	wantPasswd(t, dir)
	if _, _, err := vic(t, "mount", "--store", store, dir); err == nil || !strings.Contains(err.Error(), "mounted already") {
		t.Errorf("mount twice: %v", err)
	}
	if _, _, err := vic(t, "gc", "--store", store); err != nil {
		t.Errorf("gc beside it: %v", err)
	}
	m.cmd.Process.Signal(syscall.SIGINT)
	if err := m.wait(); err != nil {
		t.Errorf("after SIGINT: %v\n%s", err, m.errOut.String())
	}
	if _, err := readPasswd(dir); err == nil {
		t.Error("still mounted after SIGINT")
	}

	m = startMount(t, self(), store, dir)
	if out, err := exec.Command("fusermount3", "-u", dir).CombinedOutput(); err != nil {
		t.Fatalf("fusermount3 -u: %v\n%s", err, out)
	}
	if err := m.wait(); err != nil {
		t.Errorf("after fusermount3 -u: %v\n%s", err, m.errOut.String())
	}

	m = startMount(t, self(), store, dir)
	m.cmd.Process.Kill()
	m.wait()
	if _, err := os.ReadDir(dir); err == nil {
		t.Error("a dead mount can be read")
	}
	m = startMount(t, self(), store, dir) // over what kill -9 left
	wantPasswd(t, dir)
	m.cmd.Process.Signal(syscall.SIGTERM)
	if err := m.wait(); err != nil || !strings.Contains(m.errOut.String(), "unmounted what a vic mount that died had left") {
		t.Errorf("over a dead mount: %v\n%s", err, m.errOut.String())
	}

	for again := range 2 {
		m = startMount(t, self(), store, dir)
		f, err := os.Open(filepath.Join(dir, "images"))
		if err != nil {
			t.Fatal(err)
		}
		m.cmd.Process.Signal(syscall.SIGINT)
		for { // until it is detached, of which nobody tells
			if list, err := os.ReadDir(dir); err == nil && len(list) == 0 {
				break
			}
		}
		if again == 1 {
			m.cmd.Process.Signal(syscall.SIGINT)
			if err := m.wait(); err == nil || !strings.Contains(m.errOut.String(), "their users get errors") {
				t.Errorf("interrupted twice: %v\n%s", err, m.errOut.String())
			}
			f.Close()
			continue
		}
		f.Close()
		if err := m.wait(); err != nil || !strings.Contains(m.errOut.String(), "is in use by ") {
			t.Errorf("in use: %v\n%s", err, m.errOut.String())
		}
	}
}

// TestMountUnprivileged: who is not root sees all of his own store.
func TestMountUnprivileged(t *testing.T) {
	oracle.Root(t)
	const nobody = 65534
	work, err := os.MkdirTemp("", "vic-test-") // t.TempDir's parent is root's
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	store := storeWithBusybox(t, work)
	dir, bin := filepath.Join(work, "view"), filepath.Join(work, "vic")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(work, 0o755), os.Mkdir(dir, 0o755), os.WriteFile(bin, self, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "-R", "65534:65534", store, dir).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v\n%s", err, out)
	}
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd := exec.Command(bin)
	cmd.SysProcAttr = as
	m := startMount(t, cmd, store, dir)
	read := exec.Command("tar", "-C", dir, "-cf", "/dev/null", "--exclude=disk.raw", "images", "layers")
	read.SysProcAttr = as
	if out, err := read.CombinedOutput(); err != nil {
		t.Errorf("tar: %v\n%s", err, out)
	}
	if _, err := os.ReadDir(dir); err == nil {
		t.Error("another user, if root, looked inside")
	}
	m.cmd.Process.Signal(syscall.SIGINT)
	if err := m.wait(); err != nil {
		t.Errorf("after SIGINT: %v\n%s", err, m.errOut.String())
	}
	other := exec.Command(bin, "mount", "--allow-other", "--store", store, dir)
	other.SysProcAttr, other.Env = as, append(os.Environ(), asVic+"=1")
	if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "user_allow_other") {
		t.Errorf("--allow-other: %v\n%s", err, out)
	}
}

// TestMountAllowOther: other users see what modes and ACLs let them.
func TestMountAllowOther(t *testing.T) {
	oracle.Root(t)
	work, err := os.MkdirTemp("", "vic-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	store := storeWithBusybox(t, work)
	dir := filepath.Join(work, "view")
	for _, err := range []error{os.Chmod(work, 0o755), os.Mkdir(dir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := startMount(t, exec.Command("/proc/self/exe"), store, dir, "--allow-other")
	as := func(name string) error {
		c := exec.Command("sh", "-c", "cat "+filepath.Join(dir, name)+" >/dev/null")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return c.Run()
	}
	for name, may := range map[string]bool{"images/*/rootfs/etc/passwd": true, "images/*/config.json": true, "layers/*/disk.raw": false} {
		if err := as(name); (err == nil) != may {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.cmd.Process.Signal(syscall.SIGINT)
	if err := m.wait(); err != nil {
		t.Errorf("after SIGINT: %v\n%s", err, m.errOut.String())
	}
}
