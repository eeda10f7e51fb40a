package diskfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// needTool skips the test if a program it is judged by is missing, or fails it where
// ORACLES=1 says that all of them must be there.
func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("ORACLES") == "1" {
				t.Fatalf("oracle missing: %v", err)
			}
			t.Skipf("oracle missing: %v", err)
		}
	}
}

// needRoot does the same for tests that mount.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ORACLES") == "1" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounting needs root")
	}
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// fsck holds the disk against e2fsck.
func fsck(t testing.TB, path string) {
	t.Helper()
	needTool(t, "e2fsck")
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck -fn: %v\n%s", err, out)
	}
}

// A chain is a stack of layers on a flat sparse file: what the disk formats do with
// Deltas, done in the simplest way.
type chain struct {
	t    testing.TB
	fs   *FS
	path string
	disk *os.File
	high int64
	last *Delta
	// mapped are the clusters given out, to prove that none is given out twice.
	mapped map[int64]bool
}

func newChain(t testing.TB, o FormatOptions) *chain {
	t.Helper()
	c := &chain{t: t, path: filepath.Join(t.TempDir(), "disk.raw"), mapped: make(map[int64]bool)}
	f, d, err := Format(o)
	if err != nil {
		t.Fatal(err)
	}
	if c.disk, err = os.Create(c.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.disk.Close() })
	capacity := o.Capacity
	if capacity == 0 {
		capacity = DefaultCapacity
	}
	if err := c.disk.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	c.fs = f
	c.write(d, nil)
	return c
}

// write puts a delta whose data stream is given on the disk.
func (c *chain) write(d *Delta, stream []byte) {
	c.t.Helper()
	buf := bytes.NewBuffer(stream)
	if err := d.WriteMeta(buf); err != nil {
		c.t.Fatal(err)
	}
	s := buf.Bytes()
	s = append(s, make([]byte, -len(s)&(ClusterSize-1))...)
	for _, r := range d.Dead {
		clear(s[r.Off : r.Off+r.Len])
	}
	for _, r := range d.Map {
		for i := range r.N {
			if c.mapped[r.Disk+i] {
				c.t.Fatalf("cluster %d placed twice", r.Disk+i)
			}
			c.mapped[r.Disk+i] = true
		}
		if _, err := c.disk.WriteAt(s[r.Stream*ClusterSize:(r.Stream+r.N)*ClusterSize], r.Disk*ClusterSize); err != nil {
			c.t.Fatal(err)
		}
	}
	err := d.Fixed(func(cluster int64, p []byte) error {
		_, err := c.disk.WriteAt(p, cluster*ClusterSize)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.fs.Rebase(c.disk)
	c.high, c.last = d.High, d
}

// apply applies a tar.
func (c *chain) apply(tar []byte) *Delta {
	c.t.Helper()
	d, err := c.try(tar)
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

func (c *chain) try(tar []byte) (*Delta, error) {
	c.t.Helper()
	var stream bytes.Buffer
	cs, err := ReadTar(bytes.NewReader(tar), &stream, Limits{})
	if err != nil {
		return nil, err
	}
	if int64(stream.Len()) != cs.DataSize() {
		c.t.Fatalf("stream has %d bytes, changeset says %d", stream.Len(), cs.DataSize())
	}
	d, err := c.fs.Apply(cs, ApplyOptions{Data: bytes.NewReader(stream.Bytes()), High: c.high})
	if err != nil {
		return nil, err
	}
	c.write(d, stream.Bytes())
	return d, nil
}

// reopen drops everything in memory.
func (c *chain) reopen() {
	c.t.Helper()
	st, err := c.disk.Stat()
	if err != nil {
		c.t.Fatal(err)
	}
	if c.fs, err = Open(c.disk, st.Size()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chain) fsck() {
	c.t.Helper()
	fsck(c.t, c.path)
}

// mount shows the disk through the kernel, read-only and without replaying anything.
func (c *chain) mount() string {
	c.t.Helper()
	return mountDisk(c.t, c.path, "ro,noload")
}

func mountDisk(t testing.TB, path, options string) string {
	t.Helper()
	needRoot(t)
	needTool(t, "mount", "umount")
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,"+options, path, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

func shell(t testing.TB, script string, args ...any) string {
	t.Helper()
	return command(t, "sh", "-ec", fmt.Sprintf(script, args...))
}
