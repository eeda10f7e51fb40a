package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/bench/vcsim"
)

// What debug collects is there for GNU tar, of an appliance that is off as well, and has no secrets; what cannot be collected is said.
func TestDebug(t *testing.T) {
	gnuTar, govc := oracle.Find(t, "tar"), oracle.Find(t, "govc")
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}})
	l.ok("update", "firewall", "--allow")
	l.ok(l.create("--volume-store", "datastore1/volumes:default")...)
	id := strings.Repeat("0123456789abcdef", 4)
	for name, text := range map[string]string{
		"appliance/console.log": "vic serve: listening", "appliance/vmware.log": "vmx", "appliance/secret.nvram": "hidden",
		id + "/console-1.log": strings.Repeat("early ", 20000) + "panic: no root", id + "/output-1.log": "what a container said", id + "/disk.vmdk": "",
	} {
		path := filepath.Join(l.Folder("datastore1"), "vch1", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.judged(govc, "vm.power", "-off", "vch1/vch1")
	if err := os.RemoveAll(filepath.Join(l.Folder("datastore1"), "volumes")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "debug.tar.gz")
	var told struct {
		File            string
		Pieces, Missing []string
	}
	calls := l.writing()
	if err := json.Unmarshal([]byte(l.ok("debug", "-n", "vch1", "-o", out, "--json")), &told); err != nil || told.File != out {
		t.Fatalf("%+v, %v", told, err)
	}
	if after := l.writing(); len(after) != len(calls) {
		t.Errorf("it called %v, before that were %v", after, calls)
	}
	if len(told.Missing) != 1 || !strings.HasPrefix(told.Missing[0], "volume-store-default.txt: ") {
		t.Errorf("missing: %q", told.Missing)
	}
	dir := t.TempDir()
	if text, err := exec.Command(gnuTar, "-xzf", out, "-C", dir, "--strip-components=1").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	key, err := os.ReadFile(filepath.Join(l.dir, "certs", "server", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range told.Pieces {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		for _, secret := range []string{"PRIVATE KEY", strings.Split(string(key), "\n")[1], "what a container said", "hidden"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s has %q", name, secret)
			}
		}
	}
	for name, want := range map[string]string{
		"vch.json": `"name": "vch1"`, "status.json": `"power": "poweredOff"`, "config.json": `"--bridge-network"`, "vms.json": `"name": "vch1"`, "hosts.json": `"serialPortsLetOut": true`,
		"events.txt": "VmPoweredOnEvent", "tasks.txt": "VirtualMachine.powerOff", "container-store.txt": " " + id + "/output-1.log\n", "image-store.txt": "[datastore1] vic on ",
		"logs/appliance/console.log": "vic serve: listening", "logs/appliance/vmware.log": "vmx", "logs/" + id + "/console-1.log": "panic: no root", "missing.txt": "volume-store-default.txt",
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), want) || !slices.Contains(told.Pieces, name) || len(text) > 64<<10 {
			t.Errorf("%s: no %q in %d bytes, %v\n%.2000s", name, want, len(text), err, text)
		}
	}
	if _, _, err := machine(t, "debug", "-n", "vch1", "-o", out); !os.IsExist(err) {
		t.Errorf("in place of a file that is there: %v", err)
	}
	if _, _, err := machine(t, "debug", "-n", "vch1", "--enable-ssh", "--rootpw", "secret"); err == nil || !strings.Contains(err.Error(), "--enable-ssh is not here: there is no shell in the appliance") || exitCode(err) != 2 {
		t.Errorf("a shell: %v", err)
	}
	t.Chdir(t.TempDir())
	if text := l.ok("debug", "-n", "vch1"); !strings.HasPrefix(text, "vch1-debug-") || !strings.Contains(text, " files about VCH vch1\n") {
		t.Errorf("debug: %s", text)
	}
}
