package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vic/bench/oracle"
	"vic/containervm"
)

func TestCanShare(t *testing.T) {
	d := &Driver{Virtiofsd: filepath.Join(t.TempDir(), "nope")}
	if err := d.CanShare(); err == nil || !strings.Contains(err.Error(), "it takes ") {
		t.Errorf("without the program: %v", err)
	}
}

// Whoever serves a folder ends with its connection, also if nobody ever used that: a VCH that dies between it and QEMU
// leaves nothing. And what was put together for it is seen nowhere else.
func TestShareEndsWithItsConnection(t *testing.T) {
	d := new(Driver)
	if err := d.CanShare(); err != nil {
		oracle.Missing(t, err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	runtimeDir, err := os.MkdirTemp("", "vic")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(runtimeDir)
	stderr, err := os.Create(filepath.Join(runtimeDir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	before := mounts(t)
	vm := containervm.VM{ID: "share", RuntimeDir: runtimeDir, Shares: []containervm.Share{{Path: dir, Tag: "a", ReadOnly: true}, {Path: file, Tag: "b"}}}
	s, err := d.share(vm, stderr)
	if err != nil {
		t.Fatal(err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts are seen from outside:\n%s", after)
	}
	var fds []unix.PollFd
	for _, p := range s.servers {
		fd, err := unix.PidfdOpen(p.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	s.handOver()
	const patience = 60_000 // ms
	for i := range fds {
		n, err := unix.Poll(fds[i:i+1], patience)
		for err == unix.EINTR {
			n, err = unix.Poll(fds[i:i+1], patience)
		}
		if n != 1 || err != nil {
			t.Errorf("process %d runs on: %v", i, err)
		}
	}
	s.end()
	entries, err := os.ReadDir(filepath.Join(runtimeDir, shareDir))
	if err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	vm.Shares = append(vm.Shares, containervm.Share{Path: filepath.Join(dir, "nope"), Tag: "c"})
	if _, err := d.share(vm, stderr); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("of what is not there: %v", err)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
