package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// An engine shows a disk as a file until stop.
type engine interface {
	name() string
	start(ctx context.Context) (file string, stop func() error, err error)
}

type vicEngine struct{ bin, store, image, dir string }

func (e *vicEngine) name() string { return "vic mount" }

func (e *vicEngine) start(ctx context.Context) (string, func() error, error) {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return "", nil, err
	}
	stop, err := serve(exec.CommandContext(ctx, e.bin, "mount", "--store", e.store, e.dir), true)
	found, _ := filepath.Glob(filepath.Join(e.dir, "images", e.image, "disk.raw"))
	if err == nil && len(found) != 1 {
		err = errors.Join(fmt.Errorf("no disk.raw of %s", e.image), stop())
	}
	if err != nil {
		return "", nil, err
	}
	return found[0], stop, nil
}

type qemu struct{ disk, file string }

func (e *qemu) name() string { return "qemu-storage-daemon" }

func (e *qemu) start(ctx context.Context) (string, func() error, error) {
	if err := os.WriteFile(e.file, nil, 0o600); err != nil {
		return "", nil, err
	}
	stop, err := serve(exec.CommandContext(ctx, "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,read-only=on,filename="+e.disk,
		"--blockdev", "driver=vmdk,node-name=disk,read-only=on,file=file",
		"--export", "type=fuse,id=fuse,node-name=disk,mountpoint="+e.file), false)
	if err != nil {
		return "", nil, err
	}
	for { // it does not tell when it is ready
		if st, err := os.Stat(e.file); err == nil && st.Size() > 0 {
			return e.file, stop, nil
		}
		select {
		case <-ctx.Done():
			return "", nil, errors.Join(ctx.Err(), stop())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

type libvmdk struct{ disk, dir string }

func (e *libvmdk) name() string { return "vmdkmount" }

// start returns once vmdkmount has gone into the background. Of a chain's files, the last is
// that of the top disk.
func (e *libvmdk) start(ctx context.Context) (string, func() error, error) {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return "", nil, err
	}
	if out, err := exec.CommandContext(ctx, "vmdkmount", e.disk, e.dir).CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("vmdkmount: %w\n%s", err, out)
	}
	stop := func() error {
		if out, err := exec.Command("fusermount3", "-u", e.dir).CombinedOutput(); err != nil {
			return fmt.Errorf("fusermount3: %w\n%s", err, out)
		}
		return nil
	}
	files, err := filepath.Glob(filepath.Join(e.dir, "vmdk*"))
	if err == nil && len(files) == 0 {
		err = errors.New("vmdkmount shows nothing")
	}
	if err != nil {
		return "", nil, errors.Join(err, stop())
	}
	return filepath.Join(e.dir, fmt.Sprintf("vmdk%d", len(files))), stop, nil
}

// serve starts a program that runs until it is interrupted. It may wait for it to say
// something, which is that it is ready.
func serve(cmd *exec.Cmd, wait bool) (stop func() error, err error) {
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // so that it unmounts
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() error {
		cmd.Process.Signal(syscall.SIGINT)
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd.Path, err, errOut.String())
		}
		return nil
	}
	if wait {
		if _, err := out.Read(make([]byte, 4096)); err != nil {
			return nil, errors.Join(err, stop())
		}
	}
	return stop, nil
}
