package diskfs

import (
	"os"
	"os/exec"
	"testing"
)

// TestRealTree applies a tar of a part of this machine, and wants GNU tar's own
// extraction, e2fsck, the kernel's mount and our reader to agree.
func TestRealTree(t *testing.T) {
	needRoot(t)
	needTool(t, "tar")
	c := newChain(t, FormatOptions{})
	tarball, err := exec.Command("tar", "-C", "/", "--xattrs", "--xattrs-include=*", "--format=posix", "--numeric-owner", "-cf", "-",
		"etc", "usr/share/perl", "usr/share/zoneinfo", "usr/bin").Output()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(tarball)
	c.fsck()
	dir := t.TempDir()
	cmd := exec.Command("tar", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p", "-xf", "-")
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	go func() { out.Write(tarball); out.Close() }()
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, msg)
	}
	want := hostTree(t, dir)
	for _, implied := range []string{".", "usr", "usr/share"} {
		delete(want, implied) // no entries of the tar: their times differ
	}
	got := hostTree(t, c.mount())
	ours := fsTree(t, c.fs)
	compareTrees(t, "our reader", ours, "kernel", got)
	for _, implied := range []string{".", "usr", "usr/share"} {
		delete(got, implied)
	}
	compareTrees(t, "kernel", got, "GNU tar", want)
}
