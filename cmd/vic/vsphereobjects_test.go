package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
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
			`plugin "nope" not found`:                         "-d nope x1",
			"option Capacity: 0B: a volume has from 16MiB to": "-o Capacity=0 x1",
			"invalid size: '-1'":                              "-o Capacity=-1 x1",
			"includes invalid characters for a local volume":  "a/b",
		} {
			s.docker(t, "", append([]string{"volume", "create"}, strings.Fields(args)...)...).wantError(1, text)
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
}
