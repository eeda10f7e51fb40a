package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vic/bench/oracle"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sys/unix"
)

// place is what is printed with --json.
type place struct {
	URL, Thumbprint string
	Datastores      map[string]string
}

// TestMain lets the test program be the program, for who kills it.
func TestMain(m *testing.M) {
	if os.Getenv("BE_VCSIM") == "1" {
		if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-json", "-user", "me:secret", "-datastore", "ds=" + dir + ",VMFS5", "-pool", "vch", "-no-qemu"}, w, io.Discard)
		w.Close()
	}()
	var p place
	if err := json.NewDecoder(r).Decode(&p); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	if u.User.String() != "me:secret" || u.Hostname() != "127.0.0.1" || len(p.Thumbprint) != 59 || p.Datastores["ds"] != dir {
		t.Errorf("printed %+v", p)
	}
	c, err := govmomi.NewClient(t.Context(), u, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := find.NewFinder(c.Client).ResourcePool(t.Context(), "/DC0/host/*/Resources/vch"); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestUsage(t *testing.T) {
	for name, x := range map[string]struct {
		args []string
		want string
	}{
		"argument":  {[]string{"x"}, "no arguments"},
		"user":      {[]string{"-user", "me"}, "not NAME:PASSWORD"},
		"datastore": {[]string{"-datastore", "x"}, "not NAME=DIR"},
		"network":   {[]string{"-network", "x="}, "not NAME=SOCKET"},
		"flag":      {[]string{"-nope"}, "not defined"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if err := run(t.Context(), x.args, io.Discard, &stderr); !errors.Is(err, errUsage) || !strings.Contains(stderr.String(), x.want) {
				t.Errorf("%v, said %q, want %q", err, &stderr, x.want)
			}
		})
	}
}

// TestKilled kills the program and wants its VMs to end.
func TestKilled(t *testing.T) {
	oracle.Need(t, "qemu-system-x86_64")
	cmd := exec.Command(os.Args[0], "-json")
	cmd.Env = append(os.Environ(), "BE_VCSIM=1", "TMPDIR="+t.TempDir()) // what it leaves
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var p place
	if err := json.NewDecoder(out).Decode(&p); err != nil {
		t.Fatal(err)
	}
	powerOn(t, p.URL)

	var children []byte
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks { // each thread has its own
		more, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, more...)
	}
	pids := strings.Fields(string(children))
	if len(pids) == 0 {
		t.Fatal("no QEMU runs")
	}
	pid, err := strconv.Atoi(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Errorf("QEMU lives: %d, %v", n, err)
		}
		return
	}
}

// powerOn makes a VM without a disk and powers it on.
func powerOn(t *testing.T, where string) {
	t.Helper()
	ctx := t.Context()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	c, err := govmomi.NewClient(ctx, u, true)
	if err != nil {
		t.Fatal(err)
	}
	f := find.NewFinder(c.Client)
	dc, err := f.DefaultDatacenter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(dc)
	pool, err := f.ResourcePool(ctx, "*/Resources")
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task, err := folders.VmFolder.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: "vm", GuestId: "otherGuest64", NumCPUs: 1, MemoryMB: 64,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1] vm/vm.vmx"}}, pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task, err = object.NewVirtualMachine(c.Client, info.Result.(types.ManagedObjectReference)).PowerOn(ctx)
	if err == nil {
		err = task.WaitEx(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}
