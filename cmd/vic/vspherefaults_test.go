package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/testimage"
	"vic/bench/vcsim"
)

// TestVSphereFaults has vSphere fail as a person with the docker client sees it.
func TestVSphereFaults(t *testing.T) {
	var c *cluster
	s := startSuite(t, func(s *suite) []string {
		c = newCluster(t, s.dir, false)
		return c.flags(t, s.dir)
	})
	s.docker(t, "", "pull", s.image).ok()
	s.docker(t, "", "tag", s.image, "bb").ok()
	full := c.mayFill()
	t.Run("datastore full", func(t *testing.T) { testFull(t, s, c, full) })
	t.Run("pull broken off", func(t *testing.T) { testPullBroken(t, s, c) })
	t.Run("vCenter away", func(t *testing.T) { testLongAway(t, s, c) })
	t.Run("during run", func(t *testing.T) { testFailingRun(t, s, c) })
}

// mayFill has the tasks that need room on the datastore fail as long as the returned flag is set.
func (c *cluster) mayFill() *atomic.Bool {
	var full atomic.Bool
	needing := []string{"Folder.createVm", "VirtualMachine.powerOn", "VirtualDiskManager.copyVirtualDisk", "VirtualDiskManager.createVirtualDisk"}
	c.OnTask(func(task *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
		if full.Load() && slices.Contains(needing, task.Info.DescriptionId) {
			return vcsim.Outcome{Fault: &types.NoDiskSpace{}}
		}
		return run()
	})
	return &full
}

// onDatastore lists the files on the datastore, and its folders, but for those that are made once.
func (s *suite) onDatastore(t *testing.T) string {
	t.Helper()
	var all []string
	root := filepath.Join(s.dir, "datastore")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) { // it goes at the moment
			return nil
		}
		name := path[len(root):]
		if err == nil && !strings.HasPrefix(name, "/vch1/boot/") && !strings.HasPrefix(name, "/volumes/empty/") && !(e.IsDir() && strings.Count(name, "/") < 4) {
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// disks are those of images that are whole on the datastore: when the record of each was written.
func (s *suite) disks(t *testing.T) map[string]time.Time {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(s.dir, "datastore/vic/disks/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]time.Time{}
	for _, path := range records {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = fi.ModTime()
	}
	return all
}

// wide pushes an image of several layers, each of so many bytes more than the one below.
func (s *suite) wide(t *testing.T, name string, sizes ...int) string {
	t.Helper()
	var layers []testimage.Layer
	for _, n := range sizes {
		layers = append(layers, testimage.RandomBytes(n))
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := s.registry.Push(t.Context(), name, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// testFull has the datastore be full: the client says so, nothing is left, and when there is room the same command works.
func testFull(t *testing.T, s *suite, c *cluster, full *atomic.Bool) {
	const sentence = `datastore "ds" is full: remove images, containers or volumes that are not needed, or give it more space, and try again`
	fill := func(room int64) (empty func()) {
		c.FillDatastore("ds", room)
		full.Store(true)
		return func() {
			c.FillDatastore("ds", -1)
			full.Store(false)
		}
	}
	// fails runs a command that does not work for want of room, and then does.
	fails := func(t *testing.T, room int64, code int, list []string, args ...string) {
		t.Helper()
		lines := func() string {
			all := strings.Split(s.docker(t, "", list...).ok(), "\n")
			slices.Sort(all) // those of one age come in any order
			return strings.Join(all, "\n")
		}
		listed, before := lines(), s.onDatastore(t)
		empty := fill(room)
		r := s.docker(t, "", args...)
		empty()
		r.wantError(code, sentence)
		if now := lines(); now != listed {
			t.Errorf("docker %q shows\n%s\nand before\n%s", list, now, listed)
		}
		await(t, before, func() string { return s.onDatastore(t) })
		s.docker(t, "", args...).ok()
	}
	files := s.onDatastore(t)
	image := s.wide(t, "lib/full:1", 1<<20, 4<<20, 2<<20)
	t.Run("pull", func(t *testing.T) {
		fails(t, 3<<20, 1, []string{"images", "-a"}, "pull", image)
	})
	t.Run("create", func(t *testing.T) {
		fails(t, 0, 1, []string{"ps", "-a"}, "create", "--name", "full", "bb", "echo", "started")
	})
	t.Run("start", func(t *testing.T) {
		empty := fill(0)
		s.docker(t, "", "start", "full").wantError(1, sentence) // the boot medium is brought
		c.FillDatastore("ds", -1)
		s.docker(t, "", "start", "full").wantError(1, sentence) // the swap file is made
		s.docker(t, "", "inspect", "full", "--format", "{{.State.Status}}").want(0, "created\n")
		empty()
		s.docker(t, "", "start", "-a", "full").want(0, "started\n")
		s.docker(t, "", "rm", "full").ok()
	})
	t.Run("run", func(t *testing.T) {
		empty := fill(0)
		s.docker(t, "", "run", "--rm", "bb", "true").wantError(125, sentence)
		s.docker(t, "", "ps", "-aq").want(0, "")
		empty()
	})
	t.Run("volume", func(t *testing.T) {
		fails(t, 0, 1, []string{"volume", "ls"}, "volume", "create", "-o", "size=64m", "first") // the empty file system is brought
		fails(t, 0, 1, []string{"volume", "ls"}, "volume", "create", "-o", "size=64m", "second")
		fails(t, 0, 1, []string{"ps", "-a"}, "create", "--name", "mounts", "-v", "first:/data", "bb") // what says who mounts it
		s.docker(t, "", "rm", "mounts").ok()
		s.docker(t, "", "volume", "rm", "first", "second").ok()
	})
	s.docker(t, "", "rmi", image).ok()
	await(t, files, func() string { return s.onDatastore(t) })
}

// A lossy registry is one behind a proxy. After so many bytes of blobs the connection breaks, and the registry has no blobs any more.
type lossy struct {
	*httputil.ReverseProxy
	left atomic.Int64 // bytes
}

func newLossy(t *testing.T, registry string) (*lossy, string) {
	l := &lossy{ReverseProxy: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	return l, strings.TrimPrefix(srv.URL, "http://")
}

func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/blobs/") {
		if l.left.Load() <= 0 {
			http.NotFound(w, r)
			return
		}
		w = &lossyReply{w, l}
	}
	l.ReverseProxy.ServeHTTP(w, r)
}

type lossyReply struct {
	http.ResponseWriter
	l *lossy
}

func (r *lossyReply) Write(p []byte) (int, error) {
	if r.l.left.Add(-int64(len(p))) < 0 {
		panic(http.ErrAbortHandler)
	}
	return r.ResponseWriter.Write(p)
}

// testPullBroken breaks pulls off, in the three ways that there are: an upload, the client, the registry.
func testPullBroken(t *testing.T, s *suite, c *cluster) {
	images := func() string {
		return s.docker(t, "", "images", "-aq", "--no-trunc").ok()
	}
	before, files, had := images(), s.onDatastore(t), len(s.disks(t))
	t.Run("upload", func(t *testing.T) {
		image := s.wide(t, "lib/upload:1", 1<<20, 3<<20)
		for range 3 { // of the claim, and of the disks
			c.BreakUpload(0.5)
		}
		out := s.docker(t, "", "pull", image).ok()
		if !strings.Contains(out, "Downloaded newer image") || strings.Count(out, ": Pull complete") != 2 {
			t.Errorf("pull: %s", out)
		}
		s.docker(t, "", "rmi", image).ok()
		await(t, files, func() string { return s.onDatastore(t) })
	})
	t.Run("client", func(t *testing.T) {
		image := s.wide(t, "lib/client:1", 1<<20, 3<<20, 2<<20, 8<<20)
		held, release := c.HoldUpload(6 << 20)
		defer release()
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		defer cancel()
		cmd := s.command(ctx, "pull", image)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-held
		disks := func() string { return fmt.Sprint(len(s.disks(t)) - had) }
		await(t, "3", disks)
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("an interrupted pull succeeds")
		}
		await(t, "1", func() string {
			return fmt.Sprint(strings.Count(s.log.String(), `msg="pull broken off by its client" image=`+image))
		})
		if got := images(); got != before {
			t.Errorf("images after the client has gone:\n%s\nand before\n%s", got, before)
		}
		sent := s.disks(t)
		await(t, "0", func() string { // of the disk that was under way
			all, err := filepath.Glob(filepath.Join(s.dir, "datastore/vic/disks/*-delta.vmdk"))
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(len(all) - len(sent))
		})
		s.docker(t, "", "pull", image).has("Downloaded newer image")
		if now := s.disks(t); len(now) != len(sent)+1 {
			t.Errorf("%d disks on the datastore, want one more than %d", len(now), len(sent))
		} else {
			for name, at := range sent {
				if now[name] != at {
					t.Errorf("%s was sent again", name)
				}
			}
		}
		s.docker(t, "", "rmi", image).ok()
		await(t, files, func() string { return s.onDatastore(t) })
	})
	t.Run("registry", func(t *testing.T) {
		image := s.wide(t, "lib/registry:1", 1<<20, 3<<20)
		l, addr := newLossy(t, s.registry.Addr)
		image = strings.Replace(image, s.registry.Addr, addr, 1)
		l.left.Store(2 << 20)
		r := s.docker(t, "", "pull", image)
		r.wantError(1, "unknown blob")
		if got := images(); got != before {
			t.Errorf("images:\n%s\nand before\n%s", got, before)
		}
		l.left.Store(1 << 40)
		s.docker(t, "", "pull", image).has("Downloaded newer image")
		s.docker(t, "", "rmi", image).ok()
		await(t, files, func() string { return s.onDatastore(t) })
	})
}

// testFailingRun has tasks fail while docker run is at work, and vCenter end its sessions.
func testFailingRun(t *testing.T, s *suite, c *cluster) {
	files := s.onDatastore(t)
	var ending atomic.Bool // the sessions end with the next reconfiguration
	var wg sync.WaitGroup
	c.OnTask(func(task *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
		if task.Info.DescriptionId == "VirtualMachine.reconfigVm" && ending.CompareAndSwap(true, false) {
			wg.Go(func() {
				if err := c.DropSessions(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
		return run()
	})
	for _, tt := range []struct {
		task   string
		done   bool   // the task has done its work
		ending bool   // as above
		want   string // "" if docker run works
	}{
		{"Folder.createVm", false, false, "make virtual machine: *types.GenericVmConfigFault"},
		{"Folder.createVm", true, false, "make virtual machine: *types.GenericVmConfigFault"},
		{"VirtualMachine.reconfigVm", true, true, "start VM: reconfigure: *types.GenericVmConfigFault"},
		{"Datacenter.powerOnMultiVM", false, false, "start VM: power on: *types.GenericVmConfigFault"},
		{"VirtualMachine.powerOn", true, true, ""},
	} {
		t.Run(fmt.Sprintf("%s, done %t", tt.task, tt.done), func(t *testing.T) {
			ending.Store(tt.ending)
			c.FailTask(vcsim.TaskFault{Task: tt.task, Done: tt.done, Fault: &types.GenericVmConfigFault{}})
			r := s.docker(t, "", "run", "--rm", "bb", "echo", "runs")
			wg.Wait()
			if tt.want == "" {
				r.want(0, "runs\n")
			} else {
				r.wantError(125, tt.want) // the simulator has no other words
			}
			await(t, "", func() string { return s.docker(t, "", "ps", "-aq").out })
			await(t, files, func() string { return s.onDatastore(t) })
		})
	}
}
