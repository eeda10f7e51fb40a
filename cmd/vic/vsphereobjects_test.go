package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// testObjects has what needs no guest: containers by their VMs, networks and volumes.
func testObjects(t *testing.T, s *suite, c *cluster) {
	ctx := t.Context()
	t.Run("one name", func(t *testing.T) {
		const many = 8
		var wg sync.WaitGroup
		said := make([]string, many)
		for i := range many {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, commandTimeout)
				defer cancel()
				var errOut bytes.Buffer
				cmd := s.command(ctx, "create", "--name", "same", "bb")
				cmd.Stderr = &errOut
				if err := cmd.Run(); err != nil {
					said[i] = errOut.String()
				}
			})
		}
		wg.Wait()
		made := 0
		for _, text := range said {
			if text == "" {
				made++
			} else if !strings.Contains(text, `Conflict. The container name "/same" is already in use`) {
				t.Errorf("create: %s", text)
			}
		}
		if _, err := c.machine(ctx, "same"); made != 1 || err != nil {
			t.Errorf("%d of %d were made, VMs: %v", made, many, err)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		s.docker(t, "", "create", "--name", "second", "-l", "kind=second", "bb").ok()
		s.docker(t, "", "rename", "same", "second").wantError(1, "is already in use")
		s.docker(t, "", "rename", "same", "").wantError(1, "")
		s.docker(t, "", "rename", "same", "first").want(0, "")
		if _, err := c.machine(ctx, "first"); err != nil {
			t.Errorf("VM of first: %v", err)
		}
	})
	t.Run("listed", func(t *testing.T) {
		s.docker(t, "", "ps", "-aq", "--filter", "name=nobody").want(0, "")
		s.docker(t, "", "ps", "-a", "--format", "{{.Names}}", "--filter", "label=kind=second").want(0, "second\n")
		s.docker(t, "", "ps", "-a", "--format", "{{.Names}}", "--filter", "status=created", "--filter", "name=first").want(0, "first\n")
		s.docker(t, "", "ps", "-n", "1", "--format", "{{.Names}}").want(0, "second\n")
	})
	t.Run("removed", func(t *testing.T) {
		vm, err := c.machine(ctx, "first")
		if err != nil {
			t.Fatal(err)
		}
		task, err := vm.Destroy(ctx) // by somebody else
		if err == nil {
			err = task.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"first", "second"} {
			id := s.docker(t, "", "inspect", name, "--format", "{{.Id}}").ok()
			s.docker(t, "", "rm", name).want(0, name+"\n")
			s.docker(t, "", "rm", name).wantError(1, "No such container: "+name)
			if left, err := filepath.Glob(filepath.Join(s.dir, "datastore", "*", id)); err != nil || len(left) != 0 {
				t.Errorf("left on the datastore: %v, %v", left, err)
			}
		}
	})
	t.Run("no command", func(t *testing.T) {
		before, err := os.ReadDir(filepath.Join(s.dir, "datastore"))
		if err != nil {
			t.Fatal(err)
		}
		s.docker(t, strings.Repeat("\x00", 1024), "import", "-", "nocmd").ok()
		s.docker(t, "", "create", "nocmd").wantError(1, "no command specified")
		s.docker(t, "", "ps", "-aq").want(0, "")
		s.docker(t, "", "rmi", "nocmd").ok()
		if after, err := os.ReadDir(filepath.Join(s.dir, "datastore")); err != nil || len(after) != len(before) {
			t.Errorf("on the datastore are %v, before were %v, %v", after, before, err)
		}
	})
	t.Run("networks", func(t *testing.T) {
		s.docker(t, "", "network", "create", "--label", "k=v", "front").ok()
		s.docker(t, "", "network", "create", "front").wantError(1, "network with name front already exists")
		s.docker(t, "", "network", "create", "-d", "overlay", "x").wantError(1, "--driver overlay is not supported")
		s.docker(t, "", "network", "ls", "--filter", "label=k=v", "--format", "{{.Name}}").want(0, "front\n")
		subnet := s.docker(t, "", "network", "inspect", "front", "--format", "{{json .IPAM.Config}}").ok()
		s.docker(t, "", "network", "rm", "front").want(0, "front\n")
		s.docker(t, "", "network", "create", "front").ok()
		s.docker(t, "", "network", "inspect", "front", "--format", "{{json .IPAM.Config}}").want(0, subnet+"\n")
		s.docker(t, "", "network", "rm", "front").want(0, "front\n")
	})
	t.Run("volumes", func(t *testing.T) {
		for text, args := range map[string]string{
			`plugin "nope" not found`:                                  "-d nope x1",
			"option Capacity: 0B: a volume has from 16MiB to 1.999TiB": "-o Capacity=0 x1",
			"invalid size: '-1'":                                       "-o Capacity=-1 x1",
			"option Capacity: 15MiB: a volume has from":                "-o Capacity=15 x1",
			"option Capacity: 2TiB: a volume has from":                 "-o Capacity=2097152 x1",
			"option size: 4PiB: a volume has from":                     "-o size=4p x1",
			"option size: 99999999999999999999g: a volume has from":    "-o size=99999999999999999999g x1",
			"invalid size: 'much'":                                     "-o size=much x1",
			"invalid size: '1.5.5g'":                                   "-o Capacity=1.5.5g x1",
			"includes invalid characters for a local volume":           "a/b",
		} {
			s.docker(t, "", append([]string{"volume", "create"}, strings.Fields(args)...)...).wantError(1, text)
		}
		s.docker(t, "", "volume", "ls", "-q").want(0, "")
		if left := c.volumeFiles(t, s.dir); len(left) != 0 {
			t.Errorf("left on the datastore: %v", left)
		}
		s.docker(t, "", "volume", "create", "-d", "vsphere", "--label", "a=b", "-o", "Capacity=64", "v1").want(0, "v1\n")
		s.docker(t, "", "volume", "inspect", "v1", "--format", "{{.Status.Capacity}}").want(0, "64MiB\n")
		for _, filter := range []string{"dangling=true", "name=v1", "driver=vsphere", "label=a=b"} {
			s.docker(t, "", "volume", "ls", "-q", "--filter", filter).want(0, "v1\n")
		}
		id := s.docker(t, "", "create", "--name", "user", "-v", "v1:/data", "bb").ok()
		s.docker(t, "", "volume", "rm", "v1").wantError(1, "remove v1: volume is in use - ["+id+"]")
		s.docker(t, "", "volume", "ls", "-q", "--filter", "dangling=true").want(0, "")
		s.docker(t, "", "rm", "user").ok()
		s.docker(t, "", "volume", "rm", "v1").want(0, "v1\n")
	})
	t.Run("shared volumes", func(t *testing.T) { testSharedVolumes(t, s, c) })
}

// volumeFiles are the disks of volumes on the datastore, and their records.
func (c *cluster) volumeFiles(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.vmdk", "volumes/*"} {
		files, err := filepath.Glob(filepath.Join(dir, "datastore", "volumes", pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, files...)
	}
	return all
}

// testSharedVolumes removes containers with their anonymous volumes, but none that another container has, of this host or of another with
// the same store.
func testSharedVolumes(t *testing.T, s *suite, c *cluster) {
	ok := func(s *suite, args ...string) string { t.Helper(); return s.docker(t, "", args...).ok() }
	have := func(s *suite, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := strings.Fields(ok(s, "volume", "ls", "-q")); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("volumes %v, want %v", got, want)
		}
	}
	other := c.another(t, s)
	ok(s, "create", "--name", "one", "-v", "/data", "-v", "/more", "-v", "named:/named", "bb")
	ok(s, "create", "--name", "two", "--volumes-from", "one", "bb")
	at := func(path string) string {
		t.Helper()
		return ok(s, "inspect", "one", "--format", `{{range .Mounts}}{{if eq .Destination "`+path+`"}}{{.Name}}{{end}}{{end}}`)
	}
	data, more := at("/data"), at("/more")
	ok(s, "rm", "-v", "one")
	have(s, data, more, "named")
	ok(other, "create", "--name", "third", "-v", data+":/data", "bb")
	ok(s, "rm", "-v", "two")
	have(s, data, "named")
	s.docker(t, "", "volume", "rm", data).wantError(1, "virtual container host vch2")
	// For the other it is one with a name.
	ok(other, "rm", "-v", "third")
	have(other, data, "named")
	ok(other, "volume", "rm", data, "named")
	have(s)
	if left := c.volumeFiles(t, s.dir); len(left) != 0 {
		t.Errorf("left on the datastore: %v", left)
	}
}

// another is one more container host, with the same stores. It has the image bb.
func (c *cluster) another(t *testing.T, s *suite) *suite {
	t.Helper()
	dir := filepath.Join(s.dir, "vch2")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink(filepath.Join(s.dir, "certs"), filepath.Join(dir, "certs"))); err != nil {
		t.Fatal(err)
	}
	iface, port := c.iface+"b", c.iface+"c"
	ipCommand(t, "link", "add", "name", iface, "type", "veth", "peer", "name", port)
	t.Cleanup(func() { ipCommand(t, "link", "del", iface) })
	ipCommand(t, "link", "set", port, "master", c.bridges[bridgeGroup], "up")
	ipCommand(t, "link", "set", iface, "up")
	o := &suite{dir: dir, socket: filepath.Join(dir, "vic.sock"), tether: s.tether, registry: s.registry, image: s.image}
	o.driver = c.flags(t, dir)
	o.driver[slices.Index(o.driver, "--name")+1] = "vch2"
	o.driver[slices.Index(o.driver, "--bridge-interface")+1] = iface
	o.serve(t, "--bridge-network-range", "172.30.0.0/16")
	t.Cleanup(func() { o.end(t) })
	o.docker(t, "", "pull", "-q", o.image).ok()
	o.docker(t, "", "tag", o.image, "bb").ok()
	return o
}
