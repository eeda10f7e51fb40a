//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/bench/vcsim"
	"vic/fetch"
	"vic/layerstore"
)

// rootSize is that of the disks of TestInstallDisks, in GiB.
const rootSize = 1

// TestInstallDisks is what a booted appliance does with disks that are attached to it while it runs: those of images, which it writes
// where the datastore takes no uploaded deltas, and those of stopped containers and of volumes, out of and into which it copies. The datastore is VMFS 6; containers
// and some of the volumes are on another, whose disks are objects. The judges look at what is there afterwards.
func TestInstallDisks(t *testing.T) {
	oracle.Need(t, "qemu-img", "e2fsck", "debugfs")
	i := newInstalled(t, "v1")
	i.push("layers", testimage.SmallFiles(500), oneFile("srv/model", random(1, 3<<20)))
	i.push("large", oneFile("srv/large", random(2, 48<<20)))
	i.vicMachine(t, i.v1, "update", "firewall", "--allow")
	i.create(t, "--base-image-size", fmt.Sprint(rootSize), "--container-store", "objects", "--volume-store", "objects/volumes:objects")
	for _, part := range []struct {
		name string
		test func(t *testing.T)
	}{{"images", i.imagesByDevice}, {"power cut at an image", i.imageCut}, {"stopped container", i.stoppedByDevice}, {"volumes", i.volumesByDevice}, {"volume that is taken", i.volumeTaken}, {"power cut at a volume", i.volumeCut}} {
		if !t.Run(part.name, part.test) {
			t.FailNow()
		}
	}
	i.vicMachine(t, i.v1, "delete", "--name", "vch1", "--force", "--volumes")
}

// random are n bytes that nothing can compress.
func random(seed byte, n int) string {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return string(p)
}

// oneFile is a layer with a file.
func oneFile(name, text string) testimage.Layer {
	return testimage.Layer{CreatedBy: "COPY " + name, Write: func(w *tar.Writer) error {
		return testimage.Add(w, tar.Header{Name: name}, text)
	}}
}

// summed is what sha256sum writes of its input.
func summed(text string) string { return fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(text))) }

// imagesByDevice pulls images, of which the second stands upon the first.
func (i *installed) imagesByDevice(t *testing.T) {
	var store struct{ Encoding string }
	i.readJSON(t, "*/store.json", &store)
	if store.Encoding != "blockWriter" {
		t.Fatalf("the image store has the encoding %q", store.Encoding)
	}
	for _, repo := range []string{"busybox", "layers"} {
		before := i.sim.Calls()["ReconfigVM_Task"]
		i.docker(t, "pull", i.registry+"/"+repo)
		t.Logf("%s: %d changes of the appliance", repo, i.sim.Calls()["ReconfigVM_Task"]-before)
		i.sameDisk(t, repo)
	}
	out := i.docker(t, "run", "--rm", i.registry+"/layers", "sh", "-c", "sha256sum </srv/model; ls /usr/lib/node_modules | wc -l")
	if want := summed(random(1, 3<<20)) + "5\n"; out != want {
		t.Errorf("a container finds %q, want %q", out, want)
	}
}

// imageCut takes the appliance's power while a disk is attached to it that a pull writes.
func (i *installed) imageCut(t *testing.T) {
	i.cutAttached(t, "pull", "-q", i.registry+"/large")
	if out := i.docker(t, "images", "-q", i.registry+"/large"); out != "" {
		t.Errorf("there is an image, %s", out)
	}
	i.docker(t, "pull", i.registry+"/large")
	i.sameDisk(t, "large")
	if out := i.docker(t, "run", "--rm", i.registry+"/large", "sh", "-c", "sha256sum </srv/large"); out != summed(random(2, 48<<20)) {
		t.Errorf("a container finds %q", out)
	}
}

// stoppedByDevice looks into a container that does not run, makes an image of it, copies into it, and lets it run again.
func (i *installed) stoppedByDevice(t *testing.T) {
	const program = `sha256sum </in; echo kept >/out; rm -f /bin/vi`
	i.docker(t, "create", "--name", "stopped", i.registry+"/busybox", "sh", "-c", program)
	text := random(6, 3<<20)
	i.copyIn(t, "stopped", "/in", text)
	if out := i.docker(t, "start", "-a", "stopped"); out != summed(text) {
		t.Errorf("the container says %q", out)
	}
	began := time.Now()
	out := i.docker(t, "diff", "stopped")
	t.Logf("docker diff takes %v", time.Since(began).Round(100*time.Millisecond))
	for _, want := range []string{"A /in", "A /out", "D /bin/vi"} {
		if !slices.Contains(strings.Split(out, "\n"), want) {
			t.Errorf("docker diff says %q, not %q", out, want)
		}
	}
	if got := i.copyOut(t, "stopped", "/out"); got != "kept\n" {
		t.Errorf("docker cp brings %q", got)
	}
	i.docker(t, "commit", "stopped", "committed")
	if out := i.docker(t, "run", "--rm", "committed", "sh", "-c", "cat /out; sha256sum </in; ls /bin/vi 2>&1; true"); !strings.HasPrefix(out, "kept\n"+summed(text)) || !strings.Contains(out, "No such file") {
		t.Errorf("a container of what was committed says %q", out)
	}
	text = random(7, 1<<20)
	i.copyIn(t, "stopped", "/in", text)
	i.detached(t)
	disk := i.onDatastore(t, "*/"+strings.TrimSpace(i.docker(t, "ps", "-aq", "--no-trunc", "--filter", "name=stopped"))+"/disk.vmdk")
	if got := stateFile(t, i.check(t, disk), "in"); got != text {
		t.Errorf("the disk has a file of %d bytes", len(got))
	}
	if out := i.docker(t, "start", "-a", "stopped"); out != summed(text) {
		t.Errorf("the container says %q", out)
	}
	if got := i.copyOut(t, "stopped", "/in"); got != text {
		t.Errorf("docker cp brings %d bytes", len(got))
	}
	i.docker(t, "rm", "stopped")
	i.detached(t)
}

// volumesByDevice copies into volumes of containers that do not run, lets them run, and copies out.
func (i *installed) volumesByDevice(t *testing.T) {
	i.docker(t, "volume", "create", "--opt", "VolumeStore=objects", "object")
	for _, volume := range []string{"data", "object"} {
		container := volume + "-user"
		i.docker(t, "create", "--name", container, "-v", volume+":/data", i.registry+"/busybox", "sh", "-c", "sha256sum </data/in; cat /data/out 2>/dev/null; echo $(wc -c </data/in) >>/data/out")
		lines := ""
		for n, text := range []string{random(3, 3<<20), "another\n"} {
			began := time.Now()
			i.copyIn(t, container, "/data/in", text)
			t.Logf("docker cp of %d bytes into volume %s takes %v", len(text), volume, time.Since(began).Round(100*time.Millisecond))
			i.volumeIs(t, volume, "in", text)
			if out, want := i.docker(t, "start", "-a", container), summed(text)+lines; out != want {
				t.Errorf("run %d says %q, want %q", n, out, want)
			}
			lines += fmt.Sprintln(len(text))
			if got := i.copyOut(t, container, "/data/out"); got != lines {
				t.Errorf("docker cp brings %q after run %d, want %q", got, n, lines)
			}
		}
	}
}

// volumeTaken starts a container whose volume a client reads that does not go on. The volume is attached for that.
func (i *installed) volumeTaken(t *testing.T) {
	text := random(5, 32<<20) // more than there is on the way
	i.copyIn(t, "object-user", "/data/in", text)
	cmd := exec.CommandContext(t.Context(), "docker", "cp", "object-user:/data/in", "-")
	cmd.Env = i.dockerEnv()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, 1<<10))
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := len(i.disks(t, i.appliance(t))); n != 2 {
		t.Errorf("the appliance has %d disks", n)
	}
	if got := i.docker(t, "start", "-a", "object-user"); !strings.HasPrefix(got, summed(text)) {
		t.Errorf("the container says %q", got)
	}
	rest, _ := io.ReadAll(out) // breaks off
	if err := cmd.Wait(); err == nil || len(rest) >= len(text) {
		t.Errorf("docker cp of a volume that was taken: %d bytes, %v", len(rest), err)
	}
	i.volumeIs(t, "object", "in", text)
}

// volumeCut takes the appliance's power while a volume is attached to it that is copied into.
func (i *installed) volumeCut(t *testing.T) {
	was, text := i.copyOut(t, "data-user", "/data/in"), random(4, 24<<20)
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	i.cutAttached(t, "cp", "-q", file, "data-user:/data/in")
	got := i.copyOut(t, "data-user", "/data/in")
	if got != was && got != text {
		t.Errorf("the volume has a file of %d bytes, neither what was there nor what was copied", len(got))
	}
	t.Logf("the copy is done: %v", got == text)
	i.volumeIs(t, "data", "in", got)
	i.copyIn(t, "data-user", "/data/in", text)
	i.volumeIs(t, "data", "in", text)
	if out := i.docker(t, "start", "-a", "data-user"); !strings.HasPrefix(out, summed(text)) {
		t.Errorf("the container says %q", out)
	}
}

// cutAttached runs a docker command that attaches a disk to the appliance, and takes the appliance's power as soon as that is
// attached. It is attached still when the appliance boots.
func (i *installed) cutAttached(t *testing.T, args ...string) {
	t.Helper()
	vm := i.appliance(t)
	attached := make(chan struct{})
	var mu sync.Mutex
	held, over := false, false
	i.sim.OnTask(func(task *simulator.Task, run func() vcsim.Outcome) vcsim.Outcome {
		if task.Info.DescriptionId != "VirtualMachine.reconfigVm" || *task.Info.Entity != vm.Reference() {
			return run()
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case over:
			return run()
		case held:
			return vcsim.Outcome{Fault: &types.GenericVmConfigFault{Reason: "the power is being cut"}}
		}
		held = true
		o := run()
		close(attached)
		return o
	})
	cmd := exec.CommandContext(t.Context(), "docker", args...)
	cmd.Env = i.dockerEnv()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-attached:
	case err := <-ended:
		t.Fatalf("docker %s ends before a disk is attached: %v\n%s", args[0], err, said.String())
	}
	task, err := vm.Reset(t.Context())
	done(t, task, err)
	if n := len(i.disks(t, vm)); n != 2 {
		t.Fatalf("the appliance boots with %d disks", n)
	}
	mu.Lock()
	over = true
	mu.Unlock()
	if err := <-ended; err == nil {
		t.Errorf("docker %s says that it has succeeded", args[0])
	}
	t.Logf("docker %s: %s", args[0], said.String())
	i.await(t)
	i.detached(t)
}

// disks are those of a VM.
func (i *installed) disks(t *testing.T, vm *object.VirtualMachine) object.VirtualDeviceList {
	t.Helper()
	devices, err := vm.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return devices.SelectByType((*types.VirtualDisk)(nil))
}

// detached checks that the appliance has its own disk alone.
func (i *installed) detached(t *testing.T) {
	t.Helper()
	if all := i.disks(t, i.appliance(t)); len(all) != 1 {
		t.Errorf("the appliance has %d disks", len(all))
	}
}

// sameDisk checks an image's disk on the datastore, which nobody has attached any more: it is what a pull into a local store makes.
func (i *installed) sameDisk(t *testing.T, repo string) {
	t.Helper()
	i.detached(t)
	local, err := layerstore.Open(filepath.Join(t.TempDir(), "store"), layerstore.Options{Capacity: rootSize << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	ref, err := reference.ParseDockerRef(i.registry + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	registry := fetch.Client{Insecure: []string{i.registry}}
	src, err := registry.Resolve(t.Context(), ref, fetch.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := local.Pull(t.Context(), src, ref, layerstore.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := local.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Disks []string }
	i.readJSON(t, "*/vchs/vch1/images/"+img.ID.Encoded()+".json", &record)
	if len(record.Disks) == 0 {
		t.Fatalf("the image %s has no disks", repo)
	}
	there := i.onDatastore(t, "*/disks/"+record.Disks[0]+".vmdk")
	command(t, "qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", disk, there)
	i.check(t, there)
	t.Logf("%s is %d disks", repo, len(record.Disks))
}

// check has e2fsck judge the file system of a disk on the datastore, and returns that disk as a raw file.
func (i *installed) check(t *testing.T, disk string) (raw string) {
	t.Helper()
	raw = filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw)
	checkState(t, raw)
	return raw
}

// volumeIs checks a volume's file system, and a file in it, on the datastore.
func (i *installed) volumeIs(t *testing.T, volume, name, want string) {
	t.Helper()
	i.detached(t)
	disk := i.onDatastore(t, "volumes/"+volume+"-*.vmdk")
	if got := stateFile(t, i.check(t, disk), name); got != want {
		t.Errorf("file %s of volume %s has %d bytes, want %d", name, volume, len(got), len(want))
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(disk), "volumes", volume, "*.writes")); err != nil || len(left) != 0 {
		t.Errorf("%q keep others from the volume: %v", left, err)
	}
}

// onDatastore is the one file on the datastores, but for extents of disks, that a pattern means.
func (i *installed) onDatastore(t *testing.T, pattern string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(i.sim.Folder("datastore1"), pattern))
	if len(all) == 0 {
		all, err = filepath.Glob(filepath.Join(i.sim.Folder("objects"), pattern))
	}
	all = slices.DeleteFunc(all, func(file string) bool { return strings.HasSuffix(file, "-flat.vmdk") })
	if err != nil || len(all) != 1 {
		t.Fatalf("%s are %q, %v", pattern, all, err)
	}
	return all[0]
}

func (i *installed) readJSON(t *testing.T, pattern string, v any) {
	t.Helper()
	text, err := os.ReadFile(i.onDatastore(t, pattern))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// copyIn copies a file into a container.
func (i *installed) copyIn(t *testing.T, container, path, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	i.docker(t, "cp", file, container+":"+path)
}

// copyOut copies a file out of a container.
func (i *installed) copyOut(t *testing.T, container, path string) string {
	t.Helper()
	r := tar.NewReader(strings.NewReader(i.docker(t, "cp", container+":"+path, "-")))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
