//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"

	"vic/containervm/appliance"
)

// A counter is a container that prints numbers, one a second, and the volume, network and image that it has.
type counter struct {
	state string // as docker tells it
	boot  string // the ID that its VM's kernel has given this boot
	last  int    // of the numbers that were seen
}

// runCounter runs the container, on a network and with a volume of its own. SIGTERM ends it well.
func (i *installed) runCounter(t *testing.T) *counter {
	t.Helper()
	i.docker(t, "network", "create", "backend")
	i.docker(t, "volume", "create", "data")
	i.docker(t, "run", "-d", "--name", "counter", "--network", "backend", "-v", "data:/data", i.registry+"/busybox", "sh", "-c",
		"trap 'exit 0' TERM; echo kept >/data/file; i=0; while :; do echo $i; i=$((i+1)); sleep 1; done")
	c := &counter{state: i.counterState(t), boot: i.counterBoot(t)}
	i.follow(t, c, 3)
	return c
}

func (i *installed) counterState(t *testing.T) string {
	t.Helper()
	return i.docker(t, "inspect", "--format", "{{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.RestartCount}} {{.Image}}", "counter")
}

func (i *installed) counterBoot(t *testing.T) string {
	t.Helper()
	return i.docker(t, "exec", "counter", "cat", "/proc/sys/kernel/random/boot_id")
}

// follow reads the container's log from its beginning until there are so many numbers more than were seen. None is missing.
func (i *installed) follow(t *testing.T, c *counter, more int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "logs", "-f", "counter")
	cmd.Env = i.dockerEnv()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	lines := bufio.NewScanner(out)
	for ; want <= c.last+more && lines.Scan(); want++ {
		if got := lines.Text(); got != strconv.Itoa(want) {
			t.Errorf("line %d of the log is %q", want, got)
			break
		}
	}
	cancel()
	_ = cmd.Wait() // it was killed
	if want <= c.last+more {
		t.Fatalf("docker logs ends after %d lines, %d were to come: %v, %s", want, c.last+more, lines.Err(), said.String())
	}
	c.last = want - 1
}

// unharmed finds the container, with all that it has, as it was. It has run all along.
func (i *installed) unharmed(t *testing.T, c *counter) {
	t.Helper()
	if got := i.counterState(t); got != c.state {
		t.Errorf("the container is %q, and was %q", got, c.state)
	}
	if got := i.counterBoot(t); got != c.boot {
		t.Errorf("its VM's boot is %q, and was %q", got, c.boot)
	}
	i.follow(t, c, 3)
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"exec", "counter", "cat", "/data/file"}, "kept"},
		{[]string{"images", "--format", "{{.Repository}}"}, i.registry + "/busybox"},
		{[]string{"ps", "-a", "--format", "{{.Names}}"}, "counter one"},
		{[]string{"volume", "ls", "--format", "{{.Name}}"}, "data"},
		{[]string{"network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"}, "backend"},
		{[]string{"logs", "one"}, "hello"},
	} {
		if got := strings.Join(strings.Fields(i.docker(t, x.args...)), " "); got != x.want {
			t.Errorf("docker %s: %q, want %q", strings.Join(x.args, " "), got, x.want)
		}
	}
}

// works has another container run, of the image and beside the first: they find each other by name.
func (i *installed) works(t *testing.T) {
	t.Helper()
	if out := i.docker(t, "run", "--rm", "--network", "backend", i.registry+"/busybox", "sh", "-c", "ping -c 1 -W 20 counter >/dev/null && echo found"); out != "found\n" {
		t.Errorf("docker run: %q", out)
	}
}

// await waits until the API answers.
func (i *installed) await(t *testing.T) {
	t.Helper()
	began := time.Now()
	for end := began.Add(patience); ; {
		cmd := exec.CommandContext(t.Context(), "docker", "version")
		cmd.Env = i.dockerEnv()
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Logf("the API answers after %v", time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the API does not answer: %v\n%s", err, out)
		}
	}
}

// is checks which release the VCH is.
func (i *installed) is(t *testing.T, version string) {
	t.Helper()
	if got := i.docker(t, "version", "--format", "{{.Server.Version}}"); got != version+"\n" {
		t.Errorf("docker version: %q, want %s", got, version)
	}
	var got struct{ Version, State string }
	if err := json.Unmarshal([]byte(i.vicMachine(t, i.v1, "inspect", "--name", "vch1", "--json")), &got); err != nil || got.Version != version || got.State != "installed" {
		t.Errorf("vic-machine inspect: %+v, %v, want %s", got, err, version)
	}
}

// appliance is the appliance's VM, for somebody who is past vic-machine.
func (i *installed) appliance(t *testing.T) *object.VirtualMachine {
	t.Helper()
	c, err := i.sim.Administrator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vm, err := find.NewFinder(c).VirtualMachine(t.Context(), "/DC0/vm/vch1/vch1")
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// done waits for a task.
func done(t *testing.T, task *object.Task, err error) {
	t.Helper()
	if err == nil {
		err = task.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reset takes the appliance's power for a moment.
func (i *installed) reset(t *testing.T, c *counter) {
	task, err := i.appliance(t).Reset(t.Context())
	done(t, task, err)
	i.await(t)
	i.unharmed(t, c)
	i.works(t)
}

// upgrade boots another release.
func (i *installed) upgrade(t *testing.T, c *counter) {
	i.is(t, "v1")
	began := time.Now()
	i.vicMachine(t, i.v2, "upgrade", "--name", "vch1", "--appliance-iso", i.v2.iso, "--tls-cert-path", i.certs, "--timeout", patience.String())
	t.Logf("vic-machine upgrade takes %v", time.Since(began).Round(100*time.Millisecond))
	i.is(t, "v2")
	i.unharmed(t, c)
	i.works(t)
}

// rollback boots again what was booted before.
func (i *installed) rollback(t *testing.T, c *counter) {
	i.vicMachine(t, i.v2, "upgrade", "--name", "vch1", "--rollback", "--tls-cert-path", i.certs, "--timeout", patience.String())
	i.is(t, "v1")
	i.unharmed(t, c)
}

// brokenTime is how long the release that does not come up is waited for: it has booted by then, or the test finds no last words of it.
const brokenTime = 2 * time.Minute

// brokenUpgrade upgrades to a release that does not come up, and meanwhile to another, which is refused.
func (i *installed) brokenUpgrade(t *testing.T, c *counter) {
	broken := disc(t, compile(t, "vic/cmd/appliance/testdata/broken"), appliance.NewKey(), "v3")
	isos := i.isos(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.v2.machine, i.targeted("upgrade", "--name", "vch1", "--appliance-iso", broken, "--tls-cert-path", i.certs, "--timeout", brokenTime.String())...)
	cmd.Env = i.env
	errs, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(errs); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.HasSuffix(lines.Text(), "] wait for the API") {
			second := exec.CommandContext(ctx, i.v2.machine, i.targeted("upgrade", "--name", "vch1", "--appliance-iso", i.v2.iso, "--tls-cert-path", i.certs)...)
			second.Env = i.env
			out, err := second.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the VCH is in the middle of upgrade") {
				t.Errorf("a second upgrade: %v\n%s", err, out)
			}
		}
	}
	err = cmd.Wait()
	t.Logf("the upgrade says:\n%s", said.String())
	if err == nil {
		t.Fatal("the upgrade has succeeded")
	}
	for _, want := range []string{"wait for the API", "does not answer, after " + brokenTime.String(), "broken: it cannot start"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	i.await(t)
	i.is(t, "v1")
	i.unharmed(t, c)
	if after := i.isos(t); !slices.Equal(after, isos) {
		t.Errorf("there are %q, before there were %q", after, isos)
	}
}

// isos are the ISOs of the VCH.
func (i *installed) isos(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(i.sim.Folder("datastore1"), "vch1", "*.iso"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lost takes the appliance out of the inventory, and has the same VCH made again, by the same command.
func (i *installed) lost(t *testing.T, c *counter) {
	vm := i.appliance(t)
	task, err := vm.PowerOff(t.Context())
	done(t, task, err)
	if err := vm.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.create(t)
	i.is(t, "v1")
	i.unharmed(t, c)
	i.works(t)
}

// stopped stops the container, and starts it again.
func (i *installed) stopped(t *testing.T, _ *counter) {
	i.docker(t, "stop", "-t", "20", "counter")
	if out := i.docker(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "counter"); out != "exited 0\n" {
		t.Errorf("the container that was stopped is %q", out)
	}
	i.docker(t, "start", "counter")
}

// lostState deletes the appliance with its disks, and has the same VCH made again. It knows its volumes and no containers; that one which still runs
// goes with the VCH.
func (i *installed) lostState(t *testing.T, _ *counter) {
	vm := i.appliance(t)
	task, err := vm.PowerOff(t.Context())
	done(t, task, err)
	task, err = vm.Destroy(t.Context())
	done(t, task, err)
	i.create(t)
	for args, want := range map[string]string{"ps -aq": "", "volume ls -q": "data\n"} {
		if got := i.docker(t, strings.Fields(args)...); got != want {
			t.Errorf("docker %s: %q, want %q", args, got, want)
		}
	}
	if out := i.docker(t, "run", "--rm", i.registry+"/busybox", "echo", "hello"); out != "hello\n" {
		t.Errorf("docker run: %q", out)
	}
}
