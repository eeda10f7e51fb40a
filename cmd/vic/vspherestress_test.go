package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
)

// testStress has containers come and go, some at a time, and volumes that they write. Nothing is left of them: not on the datastore,
// in vCenter's inventory, on this machine, nor in this process, which vCenter and vic serve are parts of.
func testStress(t *testing.T, s *suite, c *cluster) {
	const atOnce = 4
	runs, volumes := 6, 50
	if os.Getenv("NIGHTLY") == "1" {
		runs, volumes = 200, 1000
	}
	runs = max(runs, *leakRuns)
	volumes = max(volumes, runs)
	s.docker(t, "", "pull", "-q", s.image).ok() // also when it runs alone
	s.docker(t, "", "tag", s.image, "bb").ok()
	life := func(i int) {
		t.Helper()
		name := fmt.Sprint("stress", i)
		s.docker(t, "", "run", "--rm", "-v", name+":/data", "bb", "sh", "-c", "echo "+name+" >/data/f; cat /data/f").want(0, name+"\n")
	}
	each := func(n int, do func(i int)) {
		next := make(chan int)
		var wg sync.WaitGroup
		for range atOnce {
			wg.Go(func() {
				for i := range next {
					do(i)
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	remove := func(i int) { t.Helper(); s.docker(t, "", "volume", "rm", fmt.Sprint("stress", i)).ok() }
	// settle has the connections end that are kept for more calls, however many were made at a time.
	settle := func() {
		t.Helper()
		if err := errors.Join(c.Away(), c.Return()); err != nil {
			t.Fatal(err)
		}
		await(t, "0", func() string {
			return fmt.Sprint(s.docker(t, "", "create", "--name", "settled", "-v", "settled:/data", "bb").code)
		})
		s.docker(t, "", "rm", "settled").ok()
		s.docker(t, "", "volume", "rm", "settled").ok()
	}
	settle()
	before := c.holds(t, s)
	each(runs, life)
	each(volumes-runs, func(i int) { s.docker(t, "", "volume", "create", fmt.Sprint("stress", runs+i)).ok() })
	if got := strings.Fields(s.docker(t, "", "volume", "ls", "-q", "--filter", "name=stress").ok()); len(got) != volumes {
		t.Errorf("%d volumes, want %d", len(got), volumes)
	}
	each(volumes, remove)
	s.docker(t, "", "ps", "-aq").want(0, "")
	s.docker(t, "", "volume", "ls", "-q").want(0, "")

	var after holding
	less := func() bool { return after.goroutines <= before.goroutines && after.descriptors <= before.descriptors }
	for again := 0; again < 5 && (again == 0 || !less()); again++ { // how many connections are kept is by how many calls have met
		settle()
		for tries := 0; ; tries++ { // connections that their client has closed end when the server notices, which tells nobody
			if after = c.holds(t, s); less() || tries == 500 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Logf("after %d containers and %d volumes: %d goroutines, %d descriptors, %d files of the store, %d of the datastore, VMs %q, %d KiB resident; before: %d, %d, %d, %d, %q, %d",
		runs, volumes, after.goroutines, after.descriptors, len(after.files), len(after.datastore), after.vms, after.resident,
		before.goroutines, before.descriptors, len(before.files), len(before.datastore), before.vms, before.resident)
	if after.goroutines > before.goroutines || after.descriptors > before.descriptors {
		t.Error("goroutines or descriptors are left")
	}
	if !slices.Equal(after.vms, before.vms) {
		t.Errorf("virtual machines are %q, and were %q", after.vms, before.vms)
	}
	for path := range before.files {
		delete(after.files, path)
	}
	if len(after.files) > 0 {
		t.Errorf("files are left: %v", slices.Collect(maps.Keys(after.files)))
	}
	if !slices.Equal(after.datastore, before.datastore) {
		t.Errorf("on the datastore are\n%s\nand were\n%s", strings.Join(after.datastore, "\n"), strings.Join(before.datastore, "\n"))
	}
}

// A holding is what is held here, on the datastore and by vCenter.
type holding struct {
	held
	datastore []string // files and folders
	vms       []string // inventory paths
}

func (c *cluster) holds(t *testing.T, s *suite) holding {
	t.Helper()
	h := holding{held: s.held(t)}
	client, err := c.Administrator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := find.NewFinder(client).VirtualMachineList(t.Context(), c.dc+"/vm/...")
	if _, none := err.(*find.NotFoundError); err != nil && !none {
		t.Fatal(err)
	}
	for _, vm := range all {
		h.vms = append(h.vms, vm.InventoryPath)
	}
	root := filepath.Join(s.dir, "datastore")
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		h.datastore = append(h.datastore, strings.TrimPrefix(path, root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}
