package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

// vic runs one command line and returns what it wrote to both streams.
func vic(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	err = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return o.String(), e.String(), err
}

func TestHelp(t *testing.T) {
	out, _, err := vic(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"serve", "init", "pull", "seed", "push", "ls", "du", "disk", "rm", "save", "mount", "volume", "check", "gc", "flatten", "cat", "diff", "export", "convert", "bench", "iso", "certs", "version"} {
		if !strings.Contains(out, "\n  "+command+" ") {
			t.Errorf("vic --help does not tell of %s", command)
		}
		text, _, err := vic(t, command, "--help")
		if err != nil || !strings.Contains(text, "vic "+command) || len(text) < 100 {
			t.Errorf("vic %s --help: %v\n%s", command, err, text)
		}
	}
	if out, _, err := vic(t, "version"); err != nil || !strings.Contains(out, "1.24 to 1.51") {
		t.Errorf("version: %q, %v", out, err)
	}
}

func TestUsageErrors(t *testing.T) {
	store := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
		exit int
	}{
		{[]string{"nope"}, "unknown command", 2},
		{[]string{"init", "--store", store + "-1", "--depth", "3"}, "from 4 to 500", 1},
		{[]string{"init", "--store", store + "-2", "--capacity", "1000"}, "not a multiple of 65536", 1},
		{[]string{"init", "--store", store + "-3", "--capacity", "-1G"}, "--capacity", 2},
		{[]string{"ls"}, "name a store: --store DIR, or --image-store", 2},
		{[]string{"disk", "--store", store, "busybox"}, "vic pull gets it", 1},
		{[]string{"pull", "--store", store, "Bad"}, "invalid reference format", 2},
		{[]string{"pull", "--store", store, "--platform", "a/b/c/d", "127.0.0.1:1/x"}, "--platform", 2},
		{[]string{"rm", "--store", store, "busybox"}, "no such image", 1},
		{[]string{"save", "--store", store, "busybox"}, "no such image", 1},
		{[]string{"save", "--store", store}, "requires at least 1 arg", 2},
		{[]string{"seed", "--store", store}, "no source is named", 2},
		{[]string{"seed", "--store", store, "-", "-"}, "standard input can be read once", 2},
		{[]string{"seed", "--store", store, "a", "b", "--name", "c"}, "--name is for one source", 2},
		{[]string{"seed", "--store", store, "a", "--parallel", "0"}, "at least 1", 2},
		{[]string{"seed", "--store", store, "a", "--platform", "a/b/c/d"}, "--platform", 2},
		{[]string{"seed", "--store", store, "-f", "/nope"}, "no such file", 1},
		{[]string{"push", "--store", store}, "accepts between 1 and 2 arg", 2},
		{[]string{"push", "--store", store, "busybox", "Bad"}, "invalid reference format", 2},
		{[]string{"mount", "--store", store}, "accepts 1 arg", 2},
		{[]string{"mount", "--store", filepath.Join(store, "nope"), store}, "no such file", 1},
		{[]string{"mount", "--store", store, "/etc"}, "/etc is not empty", 1},
		{[]string{"serve", "--store", store, "--listen", "tcp://0.0.0.0:2375"}, "--open-tcp", 2},
		{[]string{"serve", "--store", store, "--tether", "/nope"}, "name it with --tether", 1},
		{[]string{"serve", "--store", store, "--accel", "magic"}, "use kvm or tcg", 2},
		{[]string{"serve", "--store", store, "--driver", "bhyve"}, "use qemu or vsphere", 2},
		{[]string{"serve", "--store", store, "--target", "vc"}, "--target is of no use with --driver qemu", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--no-spare"}, "--no-spare is of no use with --driver vsphere", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere"}, "needs --image-store", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "h:1"}, "must be tcp://", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "tcp://h:0"}, "must be tcp://", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "tcp://h:1", "--bridge-network", "pg"}, "of no use without one another", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "tcp://h:1", "--tether", "/dev/null"}, "set VIC_PASSWORD", 2},
		{[]string{"serve", "--store", store, "--container-network", "lan"}, "--container-network is of no use with --driver qemu", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "tcp://h:1", "--container-network-dns", "lan:1.1.1.1"}, "none of the port groups", 2},
		{[]string{"serve", "--store", store, "--driver", "vsphere", "--target", "vc", "--user", "u", "--image-store", "ds", "--serial-address", "tcp://h:1", "--bridge-network-range", "10.0.0.0/30"}, "26 bits at most", 2},
		{[]string{"serve", "--store", store, "--log-level", "loud"}, "use debug, info, warn or error", 2},
		{[]string{"serve", "--store", store, "--log-format", "xml"}, "use text or json", 2},
		{[]string{"serve", "--store", store, "-H", "tcp://127.0.0.1", "--tlsverify", "--tlscert", "/nope"}, "--tlscert: open /nope", 1},
		{[]string{"iso"}, `required flag(s) "output" not set`, 2},
	} {
		_, _, err := vic(t, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != tt.exit {
			t.Errorf("vic %s: %v, exit status %d, want %q, %d", strings.Join(tt.args, " "), err, exitCode(err), tt.want, tt.exit)
		}
	}
}

func TestStoreCommands(t *testing.T) {
	oracle.Need(t, "docker-registry", "busybox", "qemu-img")
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "none"))
	registry, err := testimage.StartRegistry(t.Context(), filepath.Join(dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Stop()
	layer, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Push(t.Context(), "lib/bb:1", img)
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	ok := func(args ...string) string {
		t.Helper()
		out, errOut, err := vic(t, append(args, "--store", store)...)
		if err != nil {
			t.Fatalf("vic %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut)
		}
		return out
	}
	if out := ok("init", "--capacity", "1G"); !strings.Contains(out, "disks of 1GiB, chains of 30") {
		t.Errorf("init: %s", out)
	}
	out, progress, err := vic(t, "pull", "--store", store, ref)
	if err != nil || !strings.HasPrefix(out, ref+" pulled: image ") || !strings.Contains(progress, ": pulled ") {
		t.Errorf("pull: %q, %q, %v", out, progress, err)
	}
	if out := ok("pull", ref); !strings.HasPrefix(out, ref+" up to date: image ") {
		t.Errorf("pull again: %q", out)
	}
	if out := ok("ls"); !strings.Contains(out, ref) || !strings.Contains(out, "LAYER") {
		t.Errorf("ls: %s", out)
	}
	disk := strings.TrimSpace(ok("disk", ref))
	if out, err := exec.Command("qemu-img", "info", "--backing-chain", disk).CombinedOutput(); err != nil {
		t.Errorf("qemu-img info %s: %v\n%s", disk, err, out)
	}
	var u usage
	if err := json.Unmarshal([]byte(ok("du", "--json")), &u); err != nil || len(u.Images) != 1 || u.Layers != 1 ||
		u.Size == 0 || u.Unused != 0 || u.Images[0].Own != u.Size || u.Images[0].Shared != 0 || u.Images[0].Size != u.Size {
		t.Errorf("du: %+v, %v", u, err)
	}
	second, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layer, testimage.RandomBytes(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	ref2, err := registry.Push(t.Context(), "lib/bb:2", second)
	if err != nil {
		t.Fatal(err)
	}
	ok("pull", ref2)
	if err := json.Unmarshal([]byte(ok("du", "--json")), &u); err != nil || len(u.Images) != 2 || u.Layers != 2 {
		t.Errorf("du: %+v, %v", u, err)
	}
	for _, i := range u.Images { // the first layer is of both
		if i.Shared == 0 || i.Shared+i.Own != i.Size || (i.Own > 1<<20) != (i.Names[0] == ref2) {
			t.Errorf("du: %+v", i)
		}
	}
	if out := ok("du"); !strings.Contains(out, ref2) || !strings.Contains(out, "2 layers") {
		t.Errorf("du: %s", out)
	}
	var flat struct {
		Was            int
		Written, Freed int64
		Merged         []string
	}
	if err := json.Unmarshal([]byte(ok("flatten", "--json", ref2)), &flat); err != nil || flat.Was != 3 || flat.Written < 1<<20 || len(flat.Merged) != 0 {
		t.Errorf("flatten: %+v, %v", flat, err) // the layer below is of another image
	}
	if out := ok("flatten", ref2); !strings.Contains(out, "one disk already") {
		t.Errorf("flatten again: %s", out)
	}
	ok("rm", ref2)
	if out := ok("gc"); out != "0 layers removed, 0B freed\n" {
		t.Errorf("gc: %s", out)
	}
	if out := ok("check", "--deep"); out != "the store is sound\n" {
		t.Errorf("check: %s", out)
	}
	extent := strings.TrimSuffix(disk, ".vmdk") + "-delta.vmdk"
	whole, err := os.ReadFile(extent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(extent, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := vic(t, "check", "--store", store); err == nil || !strings.Contains(out, "damaged: "+extent) {
		t.Errorf("check of a damaged store: %v\n%s", err, out)
	}
	if out := ok("rm", ref); !strings.Contains(out, "untagged "+ref) || !strings.Contains(out, "deleted ") {
		t.Errorf("rm: %s", out)
	}
	if _, err := os.Stat(disk); !os.IsNotExist(err) {
		t.Errorf("the disk is still there: %v", err)
	}
}
