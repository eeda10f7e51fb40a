package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/api/certificate"
	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/appliance"
	"vic/containervm/vch"
)

// What create says it has made is there for others, ls and inspect tell of it, and what inspect config prints makes the same again.
func TestLife(t *testing.T) {
	govc, openssl := oracle.Find(t, "govc"), oracle.Find(t, "openssl")
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}, PortGroups: []string{"admin"}})
	l.ok("update", "firewall", "--allow")
	calls := l.writing()
	create := l.create("--volume-store", "datastore1/volumes:default", "--container-network", "other:net", "--container-network-gateway", "other:10.9.0.1/16",
		"--container-network-ip-range", "other:10.9.1.1-10.9.1.99", "--management-network", "admin", "--management-network-ip", "10.1.0.7/24", "--memory", "8192", "--cpu-shares", "high",
		"--insecure-registry", "registry.example.org:5000", "--dns-server", "10.1.0.2", "--endpoint-memory", "4096")
	if out := l.ok(append(create, "--dry-run")...); !strings.Contains(out, "make VM vch1") || !strings.Contains(out, "make resource pool /DC0/host/DC0_C0/Resources/vch1") {
		t.Errorf("dry run:\n%s", out)
	}
	if after := l.writing(); !reflect.DeepEqual(after, calls) {
		t.Errorf("a dry run called %v, before that were %v", after, calls)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "certs")); err == nil {
		t.Error("a dry run has made certificates")
	}
	out := l.ok(create...)
	envFile := filepath.Join(l.dir, "certs", "vch1.env")
	for _, want := range []string{"DOCKER_HOST=tcp://" + l.ip + ":2376\nDOCKER_TLS_VERIFY=1\nDOCKER_CERT_PATH=" + filepath.Join(l.dir, "certs", "client"), envFile, " docker info"} {
		if !strings.Contains(out, want) {
			t.Errorf("create does not say %q:\n%s", want, out)
		}
	}
	if text, err := os.ReadFile(envFile); err != nil || !strings.HasPrefix(string(text), "DOCKER_HOST=tcp://"+l.ip) {
		t.Errorf("%s: %q, %v", envFile, text, err)
	}
	judge := exec.Command(openssl, "s_client", "-connect", l.ip+":2376", "-CAfile", "client/ca.pem", "-cert", "client/cert.pem", "-key", "client/key.pem", "-verify_return_error", "-verify_ip", l.ip)
	judge.Dir = filepath.Join(l.dir, "certs")
	if text, err := judge.CombinedOutput(); err != nil || !strings.Contains(string(text), "Verification: OK") {
		t.Errorf("openssl s_client: %v\n%s", err, text)
	}
	judged := func(args ...string) string {
		t.Helper()
		return l.judged(govc, args...)
	}
	for _, x := range []struct {
		args string
		want []string
	}{
		{"vm.info -e vch1/vch1", []string{"poweredOn", "4096MB", "guestinfo.vic.appliance.0", "vic.vch"}},
		{"device.ls -vm vch1/vch1", []string{"pvscsi", "cdrom", "ethernet-0  ", "VM Network", "serialport"}},
		{"device.info -vm vch1/vch1 disk-*", []string{"[datastore1] vch1/state.vmdk"}},
		{"pool.info */Resources/vch1", []string{"8192MB", "high"}},
		{"datastore.ls vch1", []string{"vch.json", "appliance-"}},
	} {
		text := judged(strings.Fields(x.args)...)
		for _, want := range x.want {
			if !strings.Contains(text, want) {
				t.Errorf("govc %s: no %q in\n%s", x.args, want, text)
			}
		}
	}
	info := judged("vm.info", "-e", "-json", "vch1/vch1")
	key, err := os.ReadFile(filepath.Join(l.dir, "certs", "server", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{`"vic"`, "PRIVATE KEY", strings.Split(string(key), "\n")[1]} {
		if strings.Contains(info, secret) {
			t.Errorf("%q can be read in the VM", secret)
		}
	}

	var list []listed
	if err := json.Unmarshal([]byte(l.ok("ls", "--json")), &list); err != nil || len(list) != 1 || list[0].Name != "vch1" || list[0].State != "installed" || list[0].Power != "poweredOn" {
		t.Errorf("ls: %+v, %v", list, err)
	}
	if out := l.ok("ls", "-r", "DC0_C0/Resources"); !strings.Contains(out, "/DC0/vm/vch1/vch1") {
		t.Errorf("ls of the cluster: %s", out)
	}
	inspect := func() (i inspected) {
		t.Helper()
		if err := json.Unmarshal([]byte(l.ok("inspect", "-n", "vch1", "--json")), &i); err != nil {
			t.Fatal(err)
		}
		return i
	}
	first := inspect()
	if first.Spec.MemoryMB != 4096 || !slices.Contains(first.Env, "DOCKER_HOST=tcp://"+l.ip+":2376") || first.Addresses["management"][0] != "10.1.0.7" {
		t.Errorf("inspect: %+v", first)
	}
	if out := l.ok("inspect", "-n", list[0].ID); !strings.Contains(out, first.UUID) {
		t.Errorf("inspect: %s", out)
	}
	command := l.ok("inspect", "config", "-n", "vch1")
	l.ok("delete", "-n", "vch1")
	words, err := exec.Command("sh", "-c", "printf '%s\\n' "+strings.TrimPrefix(command, "vic-machine ")).Output()
	if err != nil {
		t.Fatal(err)
	}
	l.ok(strings.Split(strings.TrimSuffix(string(words), "\n"), "\n")...)
	if again := inspect(); !reflect.DeepEqual(again.Spec, first.Spec) {
		t.Errorf("made of %s: %+v, want %+v", command, again.Spec, first.Spec)
	}
	l.ok("delete", "-n", "vch1", "--volumes")
	if out := l.ok("ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("ls: %s", out)
	}
}

// Each mistake has its message and what could have been meant, all are told at once, and nothing is made.
func TestValidation(t *testing.T) {
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}, Datastores: []vcsim.Datastore{{Name: "datastore1"}, {Name: "small"}, {Name: "lone"}}})
	l.ok("update", "firewall", "--allow")
	if err := os.MkdirAll(filepath.Join(l.Folder("datastore1"), "vch1", "photos"), 0o700); err != nil {
		t.Fatal(err)
	}
	images := filepath.Join(l.Folder("small"), "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(images, "store.json"), []byte(`{"version":1,"capacity":1073741824,"encoding":"hosted","cid":"00000001"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	l.unmount("DC0_C0_H1", "lone")
	calls := l.writing()
	_, _, err := machine(t, "create", "--name", "a b", "--image-store", "nope", "--bridge-network", "VM Network", "--bridge-network-range", "172.16.0.1/12", "--endpoint-memory", "10")
	for _, want := range []string{"6 problems", `--name: "a b" is no name`, `--image-store: datastore 'nope' not found; there are datastore1, small`, "--bridge-network: port group VM Network is the public network",
		"--bridge-network-range", "--endpoint-memory", "--tls-cname: name what clients reach"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"folder of somebody else", l.create(), "[datastore1] vch1 is there, with something in it that is not of this VCH"},
		{"long name", l.create("--name", strings.Repeat("x", 32)), "is no name of a VCH"},
		{"datacenter", l.create("--target", l.URL().Host+"/DC7"), "there are DC0"},
		{"compute resource", l.create("-r", "cluster7"), "--compute-resource: compute resource 'cluster7' not found; there are DC0_C0"},
		{"folder of VMs", l.create("--folder", "nope"), "--folder: folder '/DC0/vm/nope' not found"},
		{"image store", l.create("--image-store", "datastore1/../x"), "--image-store: \"datastore1/../x\" is no folder"},
		{"stores that overlap", l.create("--image-store", "datastore1/a", "--container-store", "datastore1/a/b"), "overlap"},
		{"volume store", l.create("--volume-store", "datastore1:x"), "--volume-store"},
		{"volume store of another datastore", l.create("--volume-store", "nope/x:default"), "--volume-store: datastore 'nope' not found; there are datastore1, small"},
		{"NFS", l.create("--volume-store", "nfs://h/x:default"), "mounted as one by the hosts"},
		{"label twice", l.create("--volume-store", "small/x:a", "--volume-store", "small/y:a"), `label "a" is there twice`},
		{"network", l.create("--client-network", "nope"), "--client-network: network 'nope' not found; there are VM Network, DC0_DVPG0, bridge, other"},
		{"a switch", l.create("--client-network", "DVS0"), `--client-network: "DVS0" is no port group`},
		{"no bridge", l.create("--bridge-network", ""), "--bridge-network: name a port group"},
		{"address", l.create("--client-network-ip", "10.0.0.0/24"), "--client-network-ip"},
		{"broadcast", l.create("--client-network-ip", "10.0.0.255/24"), "--client-network-ip"},
		{"no gateway", l.create("--public-network-ip", "10.0.0.5/24"), "--public-network-gateway: a static address needs"},
		{"gateway elsewhere", l.create("--public-network-ip", "10.0.0.5/24", "--public-network-gateway", "10.0.1.1"), "is not another address in 10.0.0.0/24"},
		{"gateway with DHCP", l.create("--public-network-gateway", "10.0.1.1"), "it is of no use without --public-network-ip"},
		{"two addresses", l.create("--public-network-ip", "10.0.0.5/24", "--public-network-gateway", "10.0.0.1", "--client-network-ip", "10.0.0.6/24"), "--client-network-ip: the public network is the same port group"},
		{"range that overlaps", l.create("--public-network-ip", "172.17.0.5/24", "--public-network-gateway", "172.17.0.1"), "overlap"},
		{"range of a container network", l.create("--container-network", "other", "--container-network-ip-range", "other:10.0.0.1-10.0.0.9"), "needs --container-network-gateway"},
		{"range outside", l.create("--container-network", "other", "--container-network-gateway", "other:10.0.0.1/24", "--container-network-ip-range", "other:10.0.0.5-10.0.1.9"), "is not within 10.0.0.0/24"},
		{"unknown container network", l.create("--container-network-dns", "other:10.0.0.1"), "does not begin with a port group"},
		{"level of trust", l.create("--container-network", "other", "--container-network-firewall", "other:friendly"), "there are closed, outbound, peers, published, open"},
		{"bridge as container network", l.create("--container-network", "bridge"), "is the bridge network"},
		{"DNS", l.create("--dns-server", "ns.example.org"), "--dns-server"},
		{"shares", l.create("--cpu-shares", "much"), "--cpu-shares"},
		{"reservation", l.create("--memory", "10", "--memory-reservation", "20"), "no more is reserved than the limit"},
		{"proxy", l.create("--https-proxy", "http://u:p@proxy:3128"), "a password does not belong here"},
		{"syslog", l.create("--syslog-address", "logs"), "--syslog-address"},
		{"ops user", l.create("--ops-user", "nobody", "--ops-password-file", "/dev/null"), "--ops-user: log in to"},
		{"key of another", l.create("--tls-server-cert", "testdata", "--tls-server-key", "x", "--tls-ca", "y"), "--tls-server-cert"},
		{"half of the certificates", l.create("--tls-server-cert", "x"), "--tls-server-key is missing"},
		{"quota", l.create("--storage-quota", "99999999"), "--storage-quota: datastore datastore1 has "},
		{"negative quota", l.create("--storage-quota", "-1"), "--storage-quota"},
		{"number of containers", l.create("--containers", "-1"), "--containers"},
		{"size of disks", l.create("--base-image-size", "9999"), "--base-image-size: root disks of containers have 1 to 2048 GiB"},
		{"size of the disks there are", l.create("--image-store", "small/images", "--base-image-size", "8"), "--base-image-size: the disks of image store small/images have 1GiB"},
		{"name convention", l.create("--container-name-convention", "web"), "--container-name-convention"},
		{"bridge width", l.create("--bridge-network-width", "11"), "--bridge-network-width: 11"},
		{"insecure registry", l.create("--insecure-registry", "https://r"), "--insecure-registry"},
		{"whitelist", l.create("--whitelist-registry", "*"), "--whitelist-registry"},
		{"authority of a registry", l.create("--registry-ca", "main.go"), "--registry-ca: "},
		{"no ISO", l.create("--appliance-iso", "main.go"), "--appliance-iso: appliance: not the ISO of an appliance"},
		{"wrong thumbprint", l.create("--thumbprint", strings.Repeat("AB:", 19)+"AB"), "does not match"},
		{"no password", l.create("--password-file", "/nope"), "read password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := machine(t, append(tt.args, "--json")...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if after := l.writing(); !reflect.DeepEqual(after, calls) {
				t.Errorf("it called %v, before that were %v", after, calls)
			}
			var told struct{ Problems vch.Problems }
			if strings.HasPrefix(out, "{") && (json.Unmarshal([]byte(out), &told) != nil || len(told.Problems) == 0) {
				t.Errorf("as JSON: %s", out)
			}
		})
	}
	_, warned, err := machine(t, l.create("--name", "vch2", "--volume-store", "lone/x:y", "--dry-run")...)
	if want := "warning: host DC0_C0_H1 does not have datastore lone: no container VMs can be there\n"; err != nil || !strings.Contains(warned, want) {
		t.Errorf("datastore of one host: %s, %v", warned, err)
	}
	l.ok("update", "firewall", "--deny")
	if _, _, err := machine(t, l.create()...); err == nil || !strings.Contains(err.Error(), "vic-machine update firewall --allow") || !strings.Contains(err.Error(), "DC0_C0_H0, DC0_C0_H1") {
		t.Errorf("with the firewalls closed: %v", err)
	}
	t.Setenv("VIC_MACHINE_THUMBPRINT", "")
	if _, _, err := machine(t, "ls"); err == nil || !strings.Contains(err.Error(), "if it is the one that you expect, give --thumbprint ") {
		t.Errorf("without a thumbprint: %v", err)
	}
}

func TestUsage(t *testing.T) {
	for name := range map[string]bool{"GOVC_URL": true, "GOVC_USERNAME": true, "GOVC_PASSWORD": true, "GOVC_DATACENTER": true, "GOVC_RESOURCE_POOL": true} {
		t.Setenv(name, "")
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"nope"}, "unknown command"},
		{[]string{"create", "--nope"}, "unknown flag"},
		{[]string{"create", "x"}, "unknown command"},
		{[]string{"create", "--password", "secret"}, "--password is not here: others could read it: set VIC_MACHINE_PASSWORD"},
		{[]string{"create", "--force"}, "--force is not here"},
		{[]string{"create", "--asymmetric-routes", "--nope"}, "unknown flag: --nope"},
		{[]string{"configure", "--asymmetric-routes"}, "leave it out"},
		{[]string{"configure", "--rollback"}, "vic-machine upgrade --rollback"},
		{[]string{"inspect", "config", "--format", "raw"}, "with --json"},
		{[]string{"delete", "--id", "vm-12"}, "give the ID to --name"},
		{[]string{"create", "--certificate-key-size", "2048"}, "bring your own with --tls-server-cert"},
		{[]string{"ls"}, "--target"},
		{[]string{"ls", "-t", "h"}, "--user"},
		{[]string{"ls", "-t", "u@h"}, "--user"},
		{[]string{"ls", "-t", "https://u:secret@h/sdk"}, "a password does not belong"},
		{[]string{"ls", "-t", "h", "-u", "u"}, "no password: set VIC_MACHINE_PASSWORD"},
		{[]string{"update", "firewall"}, "--allow and --deny"},
		{[]string{"create", "--timeout", "soon"}, "invalid argument"},
	} {
		_, _, err := machine(t, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != 2 || strings.Contains(err.Error(), "secret") {
			t.Errorf("vic-machine %s: %v, exit status %d, want %q, 2", strings.Join(tt.args, " "), err, exitCode(err), tt.want)
		}
	}
	t.Setenv("VIC_MACHINE_TIMEOUT", "soon")
	if _, _, err := machine(t, "create"); exitCode(err) != 2 || !strings.Contains(err.Error(), "VIC_MACHINE_TIMEOUT") {
		t.Errorf("a bad variable: %v", err)
	}
	if out, _, err := machine(t, "version"); err != nil || out != "vic-machine unknown\n" {
		t.Errorf("version: %q, %v", out, err)
	}
}

// configure changes what it is told to and nothing else, upgrade the ISO, and what fails or is rolled back is as before.
func TestChange(t *testing.T) {
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}})
	l.ok("update", "firewall", "--allow")
	l.ok(l.create("--cpu", "1000", "--insecure-registry", "a:5000", "--dns-server", "10.0.0.2")...)
	inspect := func() (i inspected) {
		t.Helper()
		if err := json.Unmarshal([]byte(l.ok("inspect", "-n", "vch1", "--json")), &i); err != nil {
			t.Fatal(err)
		}
		if i.State != "installed" || i.Power != "poweredOn" {
			t.Errorf("it is %s, %s", i.State, i.Power)
		}
		return i
	}
	first := inspect()
	calls := l.writing()
	if out := l.ok("configure", "-n", "vch1", "--debug", "--dry-run"); !strings.Contains(out, "reconfigure VM vch1") {
		t.Errorf("dry run: %s", out)
	}
	if after := l.writing(); !reflect.DeepEqual(after, calls) {
		t.Errorf("a dry run called %v, before that were %v", after, calls)
	}
	l.ok("configure", "-n", "vch1", "--insecure-registry", "b:5000", "--insecure-registry", "c", "--endpoint-memory", "4096", "--cpu", "2000", "--volume-store", "datastore1/volumes:default")
	second := inspect()
	want := first.Spec
	want.Insecure, want.MemoryMB, want.CPU.Limit, want.VolumeStores = []string{"b:5000", "c"}, 4096, 2000, []string{"datastore1/volumes:default"}
	if !reflect.DeepEqual(second.Spec, want) {
		t.Errorf("configured: %+v, want %+v", second.Spec, want)
	}
	cert := func() string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(l.dir, "certs", "server", "cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := cert()
	l.ok("configure", "-n", "vch1", "--tls-cname", "vch1.example.org", "--tls-cname", l.ip)
	if third := inspect(); cert() == before || !reflect.DeepEqual(third.Spec.TLSNames, []string{"vch1.example.org", l.ip}) {
		t.Errorf("with another name: %+v", third.Spec)
	}
	l.ok("upgrade", "-n", "vch1", "--rollback")
	if back := inspect(); !reflect.DeepEqual(back.Spec, second.Spec) {
		t.Errorf("rolled back: %+v, want %+v", back.Spec, second.Spec)
	}
	if _, _, err := machine(t, "upgrade", "-n", "vch1", "--rollback"); err == nil || !strings.Contains(err.Error(), "is as before already") {
		t.Errorf("rolled back again: %v", err)
	}
	for _, fault := range []vcsim.TaskFault{{Task: "VirtualMachine.reconfigVm"}, {Task: "VirtualMachine.reconfigVm", Done: true}, {Task: "VirtualMachine.powerOn"}, {Task: "VirtualMachine.powerOn", Done: true}} {
		spec := inspect().Spec
		l.FailTask(fault)
		if _, _, err := machine(t, "configure", "-n", "vch1", "--endpoint-memory", "1024", "--cpu", "3000", "--debug"); err == nil {
			t.Errorf("%s failed, and configure did not", fault.Task)
		}
		if after := inspect(); !reflect.DeepEqual(after.Spec, spec) {
			t.Errorf("after %s failed: %+v, want %+v", fault.Task, after.Spec, spec)
		}
	}
	l.testUpgrade(inspect)
	l.ok("delete", "-n", "vch1")
}

// The limits of a VCH are what its appliance is told, are changed and lifted by configure, and an authority of registries stays until it is
// taken back.
func TestLimits(t *testing.T) {
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}})
	l.ok("update", "firewall", "--allow")
	ca := filepath.Join(l.dir, "registry.pem")
	args := []string{"--storage-quota", "1", "--containers", "7", "--base-image-size", "8", "--container-name-convention", "corp {name}", "--bridge-network-width", "24",
		"--whitelist-registry", "*.example.org", "--whitelist-registry", "10.0.0.0/8", "--registry-ca", ca}
	if _, _, err := machine(t, l.create(args...)...); err == nil || !strings.Contains(err.Error(), "--registry-ca: open "+ca) {
		t.Errorf("without the file: %v", err)
	}
	if err := certificate.Make(filepath.Join(l.dir, "corp"), []string{"registry.example.org"}, time.Now(), 1); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "corp", "ca", "cert.pem"))
	if err == nil {
		err = os.WriteFile(ca, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.ok(l.create(args...)...)
	told := func() (string, []appliance.File) {
		t.Helper()
		c, err := appliance.Read(func(key string) (string, error) { return l.extra("vch1", key), nil })
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(c.Args, " "), c.Files
	}
	const registryFile = "/etc/ssl/certs/vic-registry-0.pem"
	has := func() bool {
		_, files := told()
		return slices.ContainsFunc(files, func(f appliance.File) bool { return f.Path == registryFile && bytes.Equal(f.Content, text) })
	}
	first, _ := told()
	for _, want := range []string{"--storage-quota 1GiB", "--containers 7", "--base-image-size 8GiB", "--container-name-convention corp {name}", "--bridge-network-width 24",
		"--whitelist-registry *.example.org --whitelist-registry 10.0.0.0/8"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in what vic serve is told: %s", want, first)
		}
	}
	if !has() {
		t.Error("the appliance does not get the registries' authority")
	}
	command := l.ok("inspect", "config", "-n", "vch1")
	for _, want := range []string{"--storage-quota 1", "--containers 7", "--base-image-size 8", "--container-name-convention 'corp {name}'", "--bridge-network-width 24", "--whitelist-registry '*.example.org'", "--registry-ca " + ca} {
		if !strings.Contains(command, want) {
			t.Errorf("no %q in %s", want, command)
		}
	}
	l.ok("configure", "-n", "vch1", "--containers", "9")
	if after, _ := told(); after != strings.Replace(first, "--containers 7", "--containers 9", 1) || !has() {
		t.Errorf("configured: %s, before: %s", after, first)
	}
	l.ok("configure", "-n", "vch1", "--containers", "0", "--storage-quota", "0", "--whitelist-registry", "", "--registry-ca", "", "--container-name-convention", "")
	if after, _ := told(); strings.Contains(after, "--containers") || strings.Contains(after, "quota") || strings.Contains(after, "whitelist") || strings.Contains(after, "convention") || has() {
		t.Errorf("lifted: %s", after)
	}
	l.ok("upgrade", "-n", "vch1", "--rollback")
	if after, _ := told(); !strings.Contains(after, "--containers 9") || !has() {
		t.Errorf("rolled back: %s", after)
	}
	if _, _, err := machine(t, "configure", "-n", "vch1", "--base-image-size", "16"); err == nil || !strings.Contains(err.Error(), "unknown flag") {
		t.Errorf("another size of disks: %v", err)
	}
	l.ok("delete", "-n", "vch1")
}

// testUpgrade has the appliance boot another ISO.
func (l *lab) testUpgrade(inspect func() inspected) {
	l.Helper()
	if _, _, err := machine(l.T, "upgrade", "-n", "vch1"); err == nil || !strings.Contains(err.Error(), "boots this one already") {
		l.Errorf("upgrade to the same: %v", err)
	}
	iso := filepath.Join(l.dir, "appliance.iso")
	text, err := os.ReadFile(iso)
	if err == nil {
		err = os.WriteFile(iso, append(text, make([]byte, 2048)...), 0o600)
	}
	if err != nil {
		l.Fatal(err)
	}
	version = "v2"
	defer func() { version = "unknown" }()
	isos := func() []string {
		all, err := filepath.Glob(filepath.Join(l.Folder("datastore1"), "vch1", "*.iso"))
		if err != nil {
			l.Fatal(err)
		}
		return all
	}
	one := isos()
	l.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn"})
	if _, _, err := machine(l.T, "upgrade", "-n", "vch1"); err == nil {
		l.Error("power on failed, and upgrade did not")
	}
	if i := inspect(); i.Version != "unknown" || !reflect.DeepEqual(isos(), one) {
		l.Errorf("after a failed upgrade: %s, %v", i.Version, isos())
	}
	l.ok("upgrade", "-n", "vch1")
	if i := inspect(); i.Version != "v2" || len(isos()) != 2 {
		l.Errorf("upgraded: %s, %v", i.Version, isos())
	}
	l.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn"})
	if _, _, err := machine(l.T, "configure", "-n", "vch1", "--debug"); err == nil {
		l.Error("power on failed, and configure did not")
	}
	l.ok("upgrade", "-n", "vch1", "--rollback") // what failed is no change
	if i := inspect(); i.Version != "unknown" {
		l.Errorf("rolled back: %s", i.Version)
	}
}

// A user of its own gets what it needs, keeps what it has, and its password is as secret as the installer's.
func TestOpsUser(t *testing.T) {
	govc := oracle.Find(t, "govc")
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}})
	l.ok("update", "firewall", "--allow")
	t.Setenv("VIC_MACHINE_OPS_PASSWORD", "vic")
	user := []string{"-r", "DC0_C0", "--ops-user", "administrator", "--ops-grant-perms", "--container-network", "other", "--affinity-vm-group"}
	l.judged(govc, "role.create", "theirs", "Network.Assign")
	l.judged(govc, "permissions.set", "-principal", "administrator", "-role", "theirs", "/DC0/network/other")
	permissions := func(path string) string {
		t.Helper()
		return l.judged(govc, "permissions.ls", path)
	}
	before := permissions("/DC0/datastore/datastore1")
	l.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
	if _, _, err := machine(t, l.create(user...)...); err == nil {
		t.Error("making the VM failed, and create did not")
	}
	if after := permissions("/DC0/datastore/datastore1"); after != before {
		t.Errorf("after a failure: %s, before: %s", after, before)
	}
	l.ok(l.create(user...)...)
	for path, role := range map[string]string{"/DC0": "ReadOnly", "/DC0/datastore/datastore1": "vic-datastore", "/DC0/network/bridge": "vic-network", "/DC0/network/other": "theirs", "/DC0/host/DC0_C0": "vic-cluster",
		"/DC0/host/DC0_C0/Resources/vch1": "vic-machines", "/DC0/vm/vch1": "vic-machines"} {
		if text := permissions(path); !strings.Contains(text, role) {
			t.Errorf("no role %s on %s:\n%s", role, path, text)
		}
	}
	docs, err := os.ReadFile("../../docs/vic-machine.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"vic-datastore", "vic-network", "vic-machines", "vic-cluster"} {
		for _, privilege := range strings.Fields(l.judged(govc, "role.ls", role)) {
			if !strings.HasPrefix(privilege, "System.") && !strings.Contains(string(docs), "`"+privilege+"`") {
				t.Errorf("docs/vic-machine.md does not tell of %s of role %s", privilege, role)
			}
		}
	}
	t.Setenv("VIC_MACHINE_OPS_PASSWORD", "")
	l.ok("configure", "-n", "vch1", "--debug") // keeps the password

	// What the user lacks is told before anything is changed, or made.
	l.judged(govc, "permissions.set", "-principal", "administrator", "-role", "ReadOnly", "/DC0/host/DC0_C0")
	l.judged(govc, "permissions.set", "-principal", "administrator", "-role", "theirs", "/DC0/datastore/datastore1")
	lacks := func(args []string, want ...string) {
		t.Helper()
		_, _, err := machine(t, args...)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %q", args[0], err, w)
			}
		}
	}
	files := "Datastore.AllocateSpace, Datastore.Browse, Datastore.FileManagement on datastore datastore1: give the user what role vic-datastore has"
	lacks([]string{"configure", "-n", "vch1", "--ops-grant-perms=false"}, "administrator may not do Host.Inventory.EditCluster on cluster", files)
	l.judged(govc, "object.rename", "/DC0/host/DC0_C0", "renamed")
	lacks([]string{"configure", "-n", "vch1", "--ops-grant-perms=false"}, "compute resource 'DC0_C0' not found; there are renamed")
	l.judged(govc, "object.rename", "/DC0/host/renamed", "DC0_C0")
	t.Setenv("VIC_MACHINE_OPS_PASSWORD", "vic")
	lacks(l.create("--ops-user", "administrator", "-n", "vch2", "--bridge-network", "other"), files, "or add --ops-grant-perms")
	l.ok("delete", "-n", "vch1")
}

// A probe prints what it has tried, and leaves nothing.
func TestProbe(t *testing.T) {
	l := newLab(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "nfs", Type: vcsim.NFS}}})
	if out := l.ok("probe", "--image-store", "nfs/images"); !strings.Contains(out, "encoding") {
		t.Errorf("probe: %s", out)
	}
	var report struct {
		Datastore string
		Trials    []struct{ Name, Outcome string }
	}
	if err := json.Unmarshal([]byte(l.ok("probe", "--image-store", "nfs", "--json")), &report); err != nil || report.Datastore != "nfs" || len(report.Trials) == 0 {
		t.Errorf("probe: %+v, %v", report, err)
	}
	if left, err := filepath.Glob(filepath.Join(l.Folder("nfs"), "*", "vic-probe-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, _, err := machine(t, "probe", "--image-store", "nope"); err == nil || !strings.Contains(err.Error(), "there are nfs") {
		t.Errorf("a datastore that is not there: %v", err)
	}
}

// The environment of govc serves as well, and an ESXi host.
func TestGovcEnvironment(t *testing.T) {
	l := newLab(t, vcsim.Options{ESX: true, PortGroups: []string{"bridge"}})
	for _, name := range []string{"TARGET", "USER", "PASSWORD"} {
		t.Setenv("VIC_MACHINE_"+name, "")
	}
	t.Setenv("GOVC_URL", l.URL().String())
	l.ok("update", "firewall", "--allow")
	l.ok(l.create()...)
	if out := l.ok("ls"); !strings.Contains(out, "/ha-datacenter/vm/vch1") {
		t.Errorf("ls: %s", out)
	}
	l.ok("delete", "-n", "vch1")
}
