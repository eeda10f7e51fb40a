package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/bench/vcsim/bridge"
)

// A cluster is a simulated vSphere whose VMs run in QEMU, the interface that vic serve has on the port group of bridges, and the bridges of
// this machine's that are the port groups.
type cluster struct {
	*vcsim.Server
	iface   string
	bridges map[string]string // by port groups
	routers map[string]string // addresses in container networks, which are this machine's
	dc      string            // inventory path of the datacenter
	pool    string            // and of the resource pool
	size    string            // of the hosts: CPUs, and bytes of memory
}

// The port groups. All but the first are container networks, and called by their levels of trust; switchedGroup is of a distributed switch.
const bridgeGroup, lanGroup, switchedGroup, peersGroup, openGroup, closedGroup, dhcpGroup = "vic-bridge", "vic lan", "vic-switched", "vic-peers", "vic-open", "vic-closed", "vic-dhcp"

func ipCommand(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// newCluster starts one, or one ESXi host, with its datastores in a folder.
func newCluster(t *testing.T, dir string, esx bool) *cluster {
	t.Helper()
	oracle.Need(t, "ip", "qemu-img")
	id := os.Getpid() % 100000
	c := &cluster{iface: fmt.Sprintf("vicv%d", id), dc: "/DC0", pool: "/DC0/host/DC0_C0/Resources/vch", size: "4 8588861440\n"}
	if esx {
		c.dc, c.pool, c.size = "/ha-datacenter", "/ha-datacenter/host/localhost.localdomain/Resources/vch", "2 4294430720\n"
	}
	wire, port := fmt.Sprintf("vicw%d", id), fmt.Sprintf("vicq%d", id)
	ipCommand(t, "link", "add", "name", wire, "type", "bridge", "mcast_snooping", "0")
	t.Cleanup(func() { ipCommand(t, "link", "del", wire) })
	ipCommand(t, "link", "set", wire, "up")
	ipCommand(t, "link", "add", "name", c.iface, "type", "veth", "peer", "name", port)
	t.Cleanup(func() { ipCommand(t, "link", "del", c.iface) })
	ipCommand(t, "link", "set", port, "master", wire, "up")
	ipCommand(t, "link", "set", c.iface, "up")
	c.bridges, c.routers = map[string]string{bridgeGroup: wire}, map[string]string{}
	groups := []string{bridgeGroup, lanGroup, peersGroup, openGroup, closedGroup, dhcpGroup}
	for i, group := range append(groups[1:], switchedGroup) {
		name := fmt.Sprintf("vic%c%d", group[4], id)
		c.bridges[group], c.routers[group] = name, fmt.Sprintf("10.%d.%d.1", 95+i, id%250) // seldom those of another such test
		ipCommand(t, "link", "add", "name", name, "type", "bridge", "mcast_snooping", "0")
		t.Cleanup(func() { ipCommand(t, "link", "del", name) })
		ipCommand(t, "addr", "add", c.routers[group]+"/24", "dev", name)
		ipCommand(t, "link", "set", name, "up")
	}
	folder := filepath.Join(dir, "datastore")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	switched := []string{switchedGroup}
	if esx { // such switches are vCenter's
		switched = nil
	}
	c.Server, err = vcsim.Start(t.Context(), vcsim.Options{ESX: esx,
		Datastores: []vcsim.Datastore{{Name: "ds", Dir: folder, Type: vcsim.NFS}}, PortGroups: groups, Switched: switched, Pools: []string{"vch"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := bridge.Attach(c.Server, bridge.Options{Bridges: c.bridges, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// onNetwork are the flags for a container network, with the addresses from 10 to 19 for containers.
func (c *cluster) onNetwork(group, name, trust string) []string {
	router := c.routers[group]
	return []string{"--container-network", group + ":" + name, "--container-network-gateway", group + ":" + router + "/24",
		"--container-network-ip-range", group + ":" + router + "0-" + router + "9", "--container-network-firewall", group + ":" + trust}
}

// flags are vic serve's, which finds its password in a file.
func (c *cluster) flags(t *testing.T, dir string) []string {
	t.Helper()
	password, _ := c.URL().User.Password()
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	serial := l.Addr().String()
	l.Close()
	flags := []string{"--driver", "vsphere", "--target", c.URL().Host, "--user", c.URL().User.Username(), "--password-file", file, "--thumbprint", c.Thumbprint(),
		"--name", "vch1", "--compute-resource", c.pool, "--image-store", "ds/vic", "--image-format", "hosted",
		"--volume-store", "ds/volumes:default", "--bridge-network", bridgeGroup, "--bridge-interface", c.iface,
		"--serial-address", "tcp://" + serial, "--serial-listen", serial}
	return append(flags, c.onNetwork(lanGroup, "lan", "published")...)
}

// TestDockerVSphere drives one vic serve, whose VMs are on a simulated vSphere, with the docker client.
func TestDockerVSphere(t *testing.T) { testDockerVSphere(t, false) }

// TestDockerESXi does so with an ESXi host that no vCenter manages.
func TestDockerESXi(t *testing.T) {
	if os.Getenv("NIGHTLY") != "1" {
		t.Skip("takes ten minutes: NIGHTLY=1 runs it")
	}
	testDockerVSphere(t, true)
}

func testDockerVSphere(t *testing.T, esx bool) {
	var c *cluster
	s := startSuite(t, func(s *suite) []string {
		c = newCluster(t, s.dir, esx)
		flags := append(c.flags(t, s.dir), "--storage-quota", "1TiB", "--containers", "50", "--container-name-convention", "{name}-vch1-{id}", "--bridge-network-width", "24")
		if !esx {
			c.regroup(t, types.ArrayUpdateOperationAdd)
			flags = append(flags, "--affinity-vm-group", vmGroup)
			flags = append(flags, "--container-network", switchedGroup, "--container-network-gateway", switchedGroup+":"+c.routers[switchedGroup]+"/24", "--container-network-firewall", switchedGroup+":outbound")
			flags = slices.Concat(flags, c.onNetwork(peersGroup, "peers", "peers"), c.onNetwork(openGroup, "open", "open"), c.onNetwork(closedGroup, "closed", "closed"))
			flags = append(flags, "--container-network", dhcpGroup+":dhcp")
		}
		return flags
	})
	for _, tt := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"images", testImages},
		{"logs", testLogs},
		{"exec", testExec},
		{"network", testNetwork},
		{"restart of the server", testServerRestart},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, s) })
	}
	t.Run("create", func(t *testing.T) { testCreate(t, s) })
	t.Run("objects", func(t *testing.T) { testObjects(t, s, c) })
	t.Run("network of the user's", func(t *testing.T) { testUserNetwork(t, s, c) })
	if !esx {
		t.Run("container networks", func(t *testing.T) { testContainerNetworks(t, s, c) })
	}
	t.Run("removed images", func(t *testing.T) { testTidy(t, s, c) })
	if !esx {
		t.Run("VM group", func(t *testing.T) { testVMGroup(t, s, c) })
	}
	t.Run("limits", func(t *testing.T) { testVSphereLimits(t, s, c) })
	t.Run("CPUs and memory", func(t *testing.T) { testSize(t, s, c) })
	t.Run("volumes", func(t *testing.T) { testDatastoreVolumes(t, s, c) })
	t.Run("stress", func(t *testing.T) { testStress(t, s, c) })
	t.Run("others at work", func(t *testing.T) { testOutOfBand(t, s, c) })
}

// testTidy removes images: their disks go with the last container that is made of them, or when vCenter is back.
func testTidy(t *testing.T, s *suite, c *cluster) {
	disks := func() []string {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(s.dir, "datastore", "vic", "disks", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := disks()
	layer := func(name string) string {
		var b strings.Builder
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}), w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	have := func(more int) {
		t.Helper()
		for end := time.Now().Add(commandTimeout); len(disks()) != len(before)+more; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("disks %v, want %d more than %v", disks(), more, before)
			}
		}
	}
	s.docker(t, layer("one"), "import", "-", "one")
	s.docker(t, "", "create", "--name", "keeper", "one", "true").ok()
	s.docker(t, "", "rmi", "-f", "one").ok()
	s.docker(t, layer("two"), "import", "-", "two")
	have(2)
	s.docker(t, "", "rm", "keeper").ok()
	have(1)
	if err := c.Away(); err != nil {
		t.Fatal(err)
	}
	s.docker(t, "", "rmi", "two").ok()
	if err := c.Return(); err != nil {
		t.Fatal(err)
	}
	have(0)
}

// testSize asks for more than there is. Each host has two CPUs and 4 GB, and a simulated cluster two hosts.
func testSize(t *testing.T, s *suite, c *cluster) {
	s.docker(t, "", "info", "--format", "{{.NCPU}} {{.MemTotal}}").want(0, c.size)
	s.docker(t, "", "run", "--cpus", "3", "bb").wantError(125, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available")
	s.docker(t, "", "run", "-m", "5g", "bb").wantError(125, "Maximum memory limit allowed is 4095MB")
	s.docker(t, "", "run", "--cpuset-cpus", "0", "bb").wantError(125, "--cpuset-cpus is not supported: the hypervisor chooses")
}

// testVSphereLimits has the memory of a container charged for its swap file, and the VM be called as it is to be.
func testVSphereLimits(t *testing.T, s *suite, c *cluster) {
	s.docker(t, "", "create", "--name", "limited", "bb", "true").ok()
	defer s.docker(t, "", "rm", "limited")
	s.docker(t, "", "info").has("VCH containers limit: 50\n", "VCH storage limit: 1024.00 GiB\n", "VCH containers storage usage: 0.2")
	if _, err := c.machine(t.Context(), "limited-vch1"); err != nil {
		t.Error(err)
	}
	s.docker(t, "", "network", "create", "narrow").ok()
	defer s.docker(t, "", "network", "rm", "narrow")
	s.docker(t, "", "network", "inspect", "narrow", "--format", "{{(index .IPAM.Config 0).Subnet}}").has(".0/24\n")
}

// testDatastoreVolumes has a volume that is a disk on a datastore: filled with the image's files, written, read by two at once, removed with its disk.
func testDatastoreVolumes(t *testing.T, s *suite, c *cluster) {
	s.docker(t, "", "volume", "create", "-o", "VolumeStore=none", "vol").wantError(1, `no volume store named "none": there are default`)
	s.docker(t, "", "volume", "create", "-o", "VolumeStore=default", "-o", "size=1g", "--label", "a=b", "vol").want(0, "vol\n")
	s.docker(t, "", "run", "--rm", "-v", "vol:/etc", "bb", "sh", "-c", "echo kept >/etc/f; grep -c root: /etc/passwd").want(0, "1\n")

	// It grows, and the file system with its next writer.
	password, _ := c.URL().User.Password()
	t.Setenv("VIC_PASSWORD", password)
	grow := []string{"volume", "grow", "vol", "2g", "--volume-store", "ds/volumes", "--target", c.URL().Host, "--user", c.URL().User.Username(), "--thumbprint", c.Thumbprint()}
	if out, _, err := vic(t, grow...); err != nil || out != "vol has 2GiB\n" {
		t.Errorf("grow: %q, %v", out, err)
	}
	s.docker(t, "", "run", "--rm", "-v", "vol:/data", "bb", "sh", "-c", "df -m /data | awk 'NR==2 { print ($2 > 1500) }'; cat /data/f").want(0, "1\nkept\n")
	s.docker(t, "", "volume", "inspect", "vol", "--format", "{{.Status.Capacity}}").want(0, "2GiB\n")
	reader := strings.TrimSpace(s.docker(t, "", "run", "-d", "-v", "vol:/data:ro", "bb", "sleep", "1000").out)
	grow[3] = "3g"
	if _, _, err := vic(t, grow...); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Error("grown under those who read it")
	}
	// Two read it. What is first mounted to be read gets the image's files all the same.
	s.docker(t, "", "run", "--rm", "-v", "vol:/data:ro", "-v", "fresh:/bin:ro", "bb", "sh", "-c", "cat /data/f; grep -c root: /etc/passwd").want(0, "kept\n1\n")
	s.docker(t, "", "run", "--rm", "-v", "vol:/data", "bb", "true").wantError(125, "is in use by running container")
	s.docker(t, "", "rm", "-f", reader)

	// Files come out of a container that does not run; none go in.
	s.docker(t, "", "create", "--name", "vols", "-v", "vol:/data", "bb").ok()
	s.docker(t, "", "cp", "vols:/data/f", "-").has("kept\n")
	s.docker(t, "", "cp", "/etc/hostname", "vols:/data/").wantError(1, "only a") // running container writes there, and, since it was enlarged, only a guest can
	s.docker(t, "", "volume", "rm", "vol").wantError(1, "volume is in use")

	// A server that has lost its state has the volumes, and has them grow.
	s.docker(t, "", "rm", "vols").ok()
	created := s.docker(t, "", "volume", "inspect", "vol", "--format", "{{.CreatedAt}} {{.Labels}} {{.Options}} {{.Status}}").ok()
	s.end(t)
	if err := os.RemoveAll(filepath.Join(s.dir, "store", "volumes", "vol")); err != nil {
		t.Fatal(err)
	}
	s.serve(t)
	s.docker(t, "", "volume", "ls", "-q").want(0, "fresh\nvol\n")
	s.docker(t, "", "volume", "inspect", "vol", "--format", "{{.CreatedAt}} {{.Labels}} {{.Options}} {{.Status}}").want(0, created+"\n")
	s.docker(t, "", "volume", "rm", "vol", "fresh").ok()
	if left := c.volumeFiles(t, s.dir); len(left) != 0 {
		t.Errorf("left on the datastore: %v", left)
	}
}

// testOutOfBand has an administrator change a VM, of another size than most, and vCenter be away.
func testOutOfBand(t *testing.T, s *suite, c *cluster) {
	since := time.Now()
	s.docker(t, "", "run", "-d", "--name", "oob", "--cpus", "2", "-m", "257m", "bb", "sleep", "1000").ok()
	vm, err := c.machine(t.Context(), "oob")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Away(); err != nil {
		t.Fatal(err)
	}
	// By its serial port. The VM has 260 MB. Its kernel keeps some for itself, before it counts.
	s.docker(t, "", "exec", "oob", "sh", "-c", "nproc; awk '/MemTotal/ { print ($2 > 200000 && $2 <= 260*1024) }' /proc/meminfo").want(0, "2\n1\n")
	if res, reply := s.request(t, http.MethodPost, "/v1.44/containers/create?name=none", "application/json", `{"Image":"bb"}`); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("create without vCenter: %s, %v", res.Status, reply)
	}
	if err := c.Return(); err != nil {
		t.Fatal(err)
	}
	testQuestion(t, s, c, vm)
	c.powerOff(t, "oob")
	s.docker(t, "", "wait", "oob").want(0, "137\n")
	s.docker(t, "", "events", "--since", fmt.Sprint(since.Unix()), "--until", fmt.Sprint(time.Now().Add(time.Second).Unix()), "--filter", "container=oob", "--format", "{{.Action}}").has("die\n")
	s.docker(t, "", "rm", "oob").want(0, "oob\n")
}

// testQuestion has the datastore be full under a container that runs: its VM stands still until an administrator has made room.
func testQuestion(t *testing.T, s *suite, c *cluster, vm *object.VirtualMachine) {
	const text = "There is no more space for virtual disk"
	asks := func(want bool) {
		t.Helper()
		await(t, fmt.Sprint(want), func() string {
			return fmt.Sprint(strings.Contains(s.docker(t, "", "inspect", "-f", "{{.State.Error}}", "oob").out, text))
		})
	}
	since := time.Now()
	if err := c.Ask(vm.Reference(), vcsim.OutOfSpace("ds")); err != nil {
		t.Fatal(err)
	}
	asks(true)
	s.docker(t, "", "exec", "oob", "true").wantError(1, "its virtual machine stands still until somebody answers: msg.hbacommon.outofspace:"+text)
	s.docker(t, "", "events", "--since", fmt.Sprint(since.Unix()), "--until", fmt.Sprint(time.Now().Add(time.Second).Unix()), "--filter", "event=question", "--format", "{{.Actor.Attributes.name}}: {{.Actor.Attributes.question}}").has(text)
	admin, err := c.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Logout(t.Context())
	if err := object.NewVirtualMachine(admin.Client, vm.Reference()).Answer(t.Context(), "1", "0"); err != nil {
		t.Fatal(err)
	}
	asks(false)
	s.docker(t, "", "exec", "oob", "echo", "alive").want(0, "alive\n")
}

// machine finds the VM of a container.
func (c *cluster) machine(ctx context.Context, name string) (*object.VirtualMachine, error) {
	client, err := c.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	f := find.NewFinder(client)
	all, err := f.VirtualMachineList(ctx, c.dc+"/vm/"+name+"-*")
	if err == nil && len(all) != 1 {
		err = errors.New("there are several")
	}
	if err != nil {
		return nil, err
	}
	return all[0], nil
}
