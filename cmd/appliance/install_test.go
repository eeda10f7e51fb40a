//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/bench/vcsim"
	"vic/bench/vcsim/bridge"
	"vic/containervm/appliance"
)

// Addresses of the public network: of this machine, and of the VCH. No two processes that test at a time have the same.
var (
	hostAddress = fmt.Sprintf("10.77.%d.1", os.Getpid()%256)
	vchAddress  = fmt.Sprintf("10.77.%d.2", os.Getpid()%256)
)

// An installed is a VCH on a simulated vSphere whose VMs run.
type installed struct {
	sim      *vcsim.Server
	registry string // with busybox
	push     func(repo string, layers ...testimage.Layer)
	certs    string // folder
	env      []string
	v1, v2   release
}

// A release is a vic-machine and the ISO that comes with it.
type release struct{ machine, iso string }

func newRelease(t *testing.T, version string) release {
	t.Helper()
	return release{compileVersion(t, "vic/cmd/vic-machine", version), disc(t, compileVersion(t, "vic/cmd/vic", version), appliance.NewKey(), version)}
}

// TestInstall is all of it: vic-machine installs a VCH on a simulated vSphere whose VMs run, the appliance boots, docker pulls an
// image and runs a container, which is a VM on the bridge network that the appliance serves. Then the VCH goes through what an
// administrator and bad luck have for it, while a container runs that is to notice nothing.
func TestInstall(t *testing.T) {
	i := newInstalled(t, "v1", "v2")
	before := i.files(t)
	i.vicMachine(t, i.v1, "update", "firewall", "--allow")
	i.create(t)
	if out := i.docker(t, "info", "--format", "{{.Name}}"); out != "vch1\n" {
		t.Errorf("docker info: %q", out)
	}
	i.docker(t, "pull", i.registry+"/busybox")
	began := time.Now()
	if out := i.docker(t, "run", "--name", "one", i.registry+"/busybox", "sh", "-c", "ping -c 1 -W 20 $(ip route | awk '/default/ {print $3}') >/dev/null && echo hello"); out != "hello\n" {
		t.Errorf("docker run: %q", out)
	}
	t.Logf("docker run takes %v", time.Since(began).Round(100*time.Millisecond))
	c := i.runCounter(t)
	if out := i.vicMachine(t, i.v1, "inspect", "--name", "vch1"); !strings.Contains(out, "vch1, VMs: 3\n") { // two containers and the appliance
		t.Errorf("the VM group is not whole: %s", out)
	}
	for _, part := range []struct {
		name string
		test func(t *testing.T, c *counter)
	}{{"reset", i.reset}, {"upgrade", i.upgrade}, {"rollback", i.rollback}, {"broken upgrade", i.brokenUpgrade}, {"lost", i.lost}, {"stopped", i.stopped}, {"lost with its state", i.lostState}} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, c) }) {
			t.FailNow() // what comes then begins where it ends
		}
	}
	i.vicMachine(t, i.v1, "delete", "--name", "vch1", "--force", "--volumes")
	if left := i.sim.Service.Context.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource).ConfigurationEx.(*types.ClusterConfigInfoEx).Group; len(left) > 0 {
		t.Errorf("groups of the cluster are left: %v", left)
	}
	if after := i.files(t); !slices.Equal(after, before) {
		t.Errorf("the datastore has %q, before there was %q", after, before)
	}
}

// newInstalled makes a simulated vSphere whose VMs run, a registry that they reach, and releases to install there.
func newInstalled(t *testing.T, first string, second ...string) *installed {
	t.Helper()
	nightly(t)
	oracle.Need(t, "docker", "docker-registry", "qemu-system-x86_64", "ip")
	outside, inside := kernelBridge(t, "o"), kernelBridge(t, "i")
	command(t, "ip", "address", "add", hostAddress+"/24", "dev", outside)
	sim, err := vcsim.Start(t.Context(), vcsim.Options{Address: hostAddress + ":0", PortGroups: []string{"bridge"},
		Datastores: []vcsim.Datastore{{Name: "datastore1"}, {Name: "objects", Objects: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sim.Close() })
	vms, err := bridge.Attach(sim, bridge.Options{Bridges: map[string]string{"VM Network": outside, "bridge": inside}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vms.Close() })
	password, _ := sim.URL().User.Password()
	i := &installed{sim: sim, certs: t.TempDir(), env: append(os.Environ(), "VIC_MACHINE_PASSWORD="+password), v1: newRelease(t, first)}
	i.startRegistry(t)
	for _, version := range second {
		i.v2 = newRelease(t, version)
	}
	t.Cleanup(func() {
		for _, folder := range sim.Folders() {
			if text, err := os.ReadFile(filepath.Join(folder, "vch1", "appliance", "console.log")); err == nil {
				t.Logf("console:\n%s", text)
			}
		}
	})
	return i
}

// files are all files and folders of the datastore.
func (i *installed) files(t *testing.T) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(i.sim.Folder("datastore1")), ".", func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// create installs the VCH.
func (i *installed) create(t *testing.T, more ...string) {
	t.Helper()
	began := time.Now()
	i.vicMachine(t, i.v1, append([]string{"create", "--name", "vch1",
		"--image-store", "datastore1", "--volume-store", "datastore1/volumes:default", "--bridge-network", "bridge", "--public-network-ip", vchAddress + "/24", "--public-network-gateway", hostAddress,
		"--state-size", "8", "--affinity-vm-group", "--insecure-registry", i.registry, "--appliance-iso", i.v1.iso, "--tls-cert-path", i.certs, "--timeout", patience.String()}, more...)...)
	t.Logf("vic-machine create takes %v", time.Since(began).Round(100*time.Millisecond))
}

// vicMachine runs that of a release, which succeeds.
func (i *installed) vicMachine(t *testing.T, r release, args ...string) string {
	t.Helper()
	return execute(t, i.env, r.machine, i.targeted(args...)...)
}

// targeted are arguments of vic-machine with those that say which vSphere is meant.
func (i *installed) targeted(args ...string) []string {
	return append(args, "--target", i.sim.URL().Host, "--user", i.sim.URL().User.Username(), "--thumbprint", i.sim.Thumbprint())
}

func (i *installed) docker(t *testing.T, args ...string) string {
	t.Helper()
	return execute(t, i.dockerEnv(), "docker", args...)
}

func (i *installed) dockerEnv() []string {
	return append(slices.Clip(i.env), "DOCKER_HOST=tcp://"+vchAddress+":2376", "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH="+filepath.Join(i.certs, "client"))
}

// kernelBridge makes a bridge of this machine's, with a name that no other test has.
func kernelBridge(t *testing.T, kind string) string {
	t.Helper()
	if os.Getuid() != 0 {
		oracle.Missing(t, errors.New("only root makes bridges"))
	}
	name := fmt.Sprintf("vic%s%d", kind, os.Getpid())
	command(t, "ip", "link", "add", "name", name, "type", "bridge", "mcast_snooping", "0")
	t.Cleanup(func() { command(t, "ip", "link", "del", name) })
	command(t, "ip", "link", "set", name, "up")
	return name
}

// execute runs a program and returns what it writes.
func execute(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// startRegistry runs a registry on the public network, with busybox.
func (i *installed) startRegistry(t *testing.T) {
	t.Helper()
	busybox, err := testimage.Busybox()
	if err != nil {
		oracle.Missing(t, err)
	}
	r, err := testimage.StartRegistry(t.Context(), filepath.Join(t.TempDir(), "registry"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop() })
	i.registry = forward(t, r.Addr)
	i.push = func(repo string, layers ...testimage.Layer) {
		t.Helper()
		img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, append([]testimage.Layer{busybox}, layers...)...)
		if err == nil {
			_, err = r.Push(t.Context(), repo+":latest", img)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	i.push("busybox")
}

// forward has the public network reach a server on loopback.
func forward(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", hostAddress+":0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				stop := context.AfterFunc(t.Context(), func() { in.Close() })
				defer stop()
				wg.Go(func() {
					_, _ = io.Copy(in, out) // either may be gone at any time
					in.Close()
				})
				_, _ = io.Copy(out, in) // likewise
			})
		}
	})
	return l.Addr().String()
}
