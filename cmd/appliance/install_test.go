//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
	"vic/bench/vcsim"
	"vic/bench/vcsim/bridge"
	"vic/containervm/appliance"
)

// Addresses of the public network of TestInstall: of this machine, and of the VCH.
const (
	hostAddress = "10.77.0.1"
	vchAddress  = "10.77.0.2"
)

// TestInstall is all of it: vic-machine installs a VCH on a simulated vSphere whose VMs run, the appliance boots, docker pulls an
// image and runs a container, which is a VM on the bridge network that the appliance serves.
func TestInstall(t *testing.T) {
	nightly(t)
	needTool(t, "docker", "docker-registry", "qemu-system-x86_64", "ip")
	outside, inside := kernelBridge(t, "o"), kernelBridge(t, "i")
	command(t, "ip", "address", "add", hostAddress+"/24", "dev", outside)
	sim, err := vcsim.Start(t.Context(), vcsim.Options{Address: hostAddress + ":0", PortGroups: []string{"bridge"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sim.Close() })
	vms, err := bridge.Attach(sim, bridge.Options{Bridges: map[string]string{"VM Network": outside, "bridge": inside}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vms.Close() })
	registry := pushBusybox(t)
	iso := disc(t, compile(t, "vic/cmd/vic"), appliance.NewKey(), "v1")
	certs := t.TempDir()
	user := sim.URL().User
	password, _ := user.Password()
	machine := compile(t, "vic/cmd/vic-machine")
	env := append(os.Environ(), "VIC_MACHINE_PASSWORD="+password)

	vicMachine := func(args ...string) string {
		return execute(t, env, machine, append(args, "--target", sim.URL().Host, "--user", user.Username(), "--thumbprint", sim.Thumbprint())...)
	}

	vicMachine("update", "firewall", "--allow")
	began := time.Now()
	vicMachine("create", "--name", "vch1",
		"--image-store", "datastore1", "--bridge-network", "bridge", "--public-network-ip", vchAddress+"/24", "--public-network-gateway", hostAddress,
		"--state-size", "8", "--insecure-registry", registry, "--appliance-iso", iso, "--tls-cert-path", certs, "--timeout", patience.String())
	t.Logf("vic-machine create takes %v", time.Since(began).Round(100*time.Millisecond))
	t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(sim.Folder("datastore1"), "vch1", "appliance", "console.log")); err == nil {
			t.Logf("console:\n%s", text)
		}
	})
	docker := func(args ...string) string {
		return execute(t, append(env, "DOCKER_HOST=tcp://"+vchAddress+":2376", "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH="+filepath.Join(certs, "client")), "docker", args...)
	}
	if out := docker("info", "--format", "{{.Name}}"); out != "vch1\n" {
		t.Errorf("docker info: %q", out)
	}
	docker("pull", registry+"/busybox")
	began = time.Now()
	if out := docker("run", "--name", "one", registry+"/busybox", "sh", "-c", "ping -c 1 -W 20 $(ip route | awk '/default/ {print $3}') >/dev/null && echo hello"); out != "hello\n" {
		t.Errorf("docker run: %q", out)
	}
	t.Logf("docker run takes %v", time.Since(began).Round(100*time.Millisecond))
	vicMachine("delete", "--name", "vch1", "--force")
}

// kernelBridge makes a bridge of this machine's, with a name that no other test has.
func kernelBridge(t *testing.T, kind string) string {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, errors.New("only root makes bridges"))
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

// pushBusybox runs a registry with an image, and returns its address on the public network.
func pushBusybox(t *testing.T) string {
	t.Helper()
	layer, err := testimage.Busybox()
	if err != nil {
		missing(t, err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	r, err := testimage.StartRegistry(t.Context(), filepath.Join(t.TempDir(), "registry"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop() })
	if _, err := r.Push(t.Context(), "busybox:latest", img); err != nil {
		t.Fatal(err)
	}
	return forward(t, r.Addr)
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
