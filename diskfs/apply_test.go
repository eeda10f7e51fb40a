package diskfs

import (
	"os"
	"os/exec"
	"testing"

	"vic/bench/oracle"
)

// TestRealTree applies a tar of a part of this machine, and wants GNU tar's own
// extraction, e2fsck, the kernel's mount and our reader to agree.
func TestRealTree(t *testing.T) {
	oracle.Root(t)
	oracle.Need(t, "tar")
	c := newChain(t, FormatOptions{Capacity: 512 << 20})
	path := t.TempDir() + "/tree.tar"
	tarball, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tarball.Close()
	cmd := exec.Command("tar", "-C", "/", "--xattrs", "--xattrs-include=*", "--format=posix", "--numeric-owner", "-cf", path,
		"etc", "usr/share/perl", "usr/share/zoneinfo")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, msg)
	}
	c.apply(tarball)
	c.check()
	dir := t.TempDir()
	command(t, "tar", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p", "-xf", path)
	want := hostTree(t, dir)
	got := c.checkReader()
	for _, implied := range []string{".", "usr", "usr/share"} {
		delete(want, implied) // no entries of the tar: their times differ
		delete(got, implied)
	}
	compareTrees(t, "our reader", got, "GNU tar", want)
}
