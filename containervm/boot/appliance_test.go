package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
)

func buildAppliance(t *testing.T, program string) *Medium {
	t.Helper()
	if _, err := newestKernel("/boot", "/lib/modules"); err != nil {
		oracle.Missing(t, err)
	}
	for _, p := range []string{debianISOLINUX, debianLDLINUX, debianCertificates} {
		if _, err := os.Stat(p); err != nil {
			oracle.Missing(t, err)
		}
	}
	m, err := BuildAppliance(t.Context(), t.TempDir(), Options{Tether: program}, Appliance{Init: program, VIC: program, Release: "v1", Key: []byte("a key")})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestAppliance builds an appliance's ISO twice, and from what is in it the medium that container VMs boot.
func TestAppliance(t *testing.T) {
	oracle.Need(t, "cpio")
	oracle.Need(t, "xorriso")
	program := tether(t)
	var isos [][]byte
	var m *Medium
	for range 2 {
		m = buildAppliance(t, program)
		path := filepath.Join(t.TempDir(), "vic.iso")
		if err := WriteISO(path, m, Options{}); err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		isos = append(isos, p)
		dir := t.TempDir()
		if msg, err := exec.Command("xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", filepath.Join(dir, "iso")).CombinedOutput(); err != nil {
			t.Fatalf("xorriso: %v\n%s", err, msg)
		}
		for name, want := range map[string]string{"KEY": "a key", "RELEASE": "v1\n", "ISOLINUX/ISOLINUX.CFG": "initrd=/initrd,/key console=tty0"} {
			if got, err := os.ReadFile(filepath.Join(dir, "iso", name)); err != nil || !strings.Contains(string(got), want) {
				t.Errorf("%s on the ISO is %q, %v", name, got, err)
			}
		}
	}
	if !bytes.Equal(isos[0], isos[1]) {
		t.Error("two ISOs of the same files differ")
	}

	root := t.TempDir()
	cmd := exec.Command("cpio", "-idm", "--quiet")
	cmd.Dir = root
	var err error
	if cmd.Stdin, err = os.Open(m.Initrd); err != nil {
		t.Fatal(err)
	}
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, msg)
	}
	kernel := filepath.Join(root, "bin/kernel")
	inside := Options{Kernel: filepath.Join(kernel, "vmlinuz"), Modules: kernel, Tether: filepath.Join(root, "bin/tether"),
		ISOLINUX: filepath.Join(root, debianISOLINUX), LDLINUX: filepath.Join(root, debianLDLINUX)}
	for _, name := range []string{"bin/vic", "etc/ssl/certs/ca-certificates.crt", "version", "modules/button.ko", "modules/evdev.ko"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	got, err := Build(t.Context(), t.TempDir(), inside)
	if err != nil {
		t.Fatal(err)
	}
	want := build(t, t.TempDir(), program)
	for _, pair := range [][2]string{{got.Image, want.Image}, {got.Initrd, want.Initrd}} {
		x, err := os.ReadFile(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s that is built in an appliance is another", filepath.Base(pair[0]))
		}
	}
	if got.Version != want.Version || filepath.Base(filepath.Dir(got.Image)) != filepath.Base(filepath.Dir(want.Image)) {
		t.Errorf("it is %s of kernel %s there, %s of %s here", got.Image, got.Version, want.Image, want.Version)
	}
	if err := WriteISO(filepath.Join(t.TempDir(), "vic.iso"), got, inside); err != nil {
		t.Error(err)
	}
}
