package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
)

// tether builds a static program to stand in for PID 1 where it does not run.
func tether(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "tether")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func build(t *testing.T, dir, tether string) *Medium {
	t.Helper()
	if _, err := newestKernel("/boot", "/lib/modules"); err != nil {
		oracle.Missing(t, err)
	}
	m, err := Build(t.Context(), dir, Options{Tether: tether})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestBuild(t *testing.T) {
	oracle.Need(t, "cpio")
	bin := tether(t)
	a, b := build(t, t.TempDir(), bin), build(t, t.TempDir(), bin)
	for _, pair := range [][2]string{{a.Kernel, b.Kernel}, {a.Image, b.Image}, {a.Initrd, b.Initrd}} {
		x, err := os.ReadFile(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs between two builds", filepath.Base(pair[0]))
		}
	}
	if f, err := elf.Open(a.Kernel); err != nil {
		t.Errorf("kernel for a direct boot is not ELF: %v", err)
	} else {
		f.Close()
	}
	out := t.TempDir()
	cmd := exec.Command("cpio", "-idm", "--quiet")
	cmd.Dir = out
	var err error
	if cmd.Stdin, err = os.Open(a.Initrd); err != nil {
		t.Fatal(err)
	}
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, msg)
	}
	want, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(out, "init")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("init in the initramfs is not the tether (%v)", err)
	}
	index, err := os.ReadFile(filepath.Join(out, "modules/index"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("modules/index:\n%s", index)
	seen := map[string]bool{}
	for line := range strings.Lines(string(index)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			t.Fatalf("index line %q", line)
		}
		seen[f[0]] = true
		if _, err := os.Stat(filepath.Join(out, "modules", f[0]+".ko")); err != nil {
			t.Error(err)
		}
	}
	for line := range strings.Lines(string(index)) {
		if deps := strings.Fields(line)[1]; deps != "-" {
			for d := range strings.SplitSeq(deps, ",") {
				if !seen[d] {
					t.Errorf("%s is a dependency and not there", d)
				}
			}
		}
	}
}

// TestISO wants the same bytes from two builds at other times in other time zones, and
// xorriso to see a boot image.
func TestISO(t *testing.T) {
	oracle.Need(t, "xorriso")
	for _, p := range []string{debianISOLINUX, debianLDLINUX} {
		if _, err := os.Stat(p); err != nil {
			oracle.Missing(t, err)
		}
	}
	bin := tether(t)
	m := build(t, t.TempDir(), bin)
	var isos [][]byte
	for _, zone := range []string{"UTC", "Asia/Kolkata"} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		old := time.Local
		time.Local = loc
		path := filepath.Join(t.TempDir(), "vic.iso")
		err = WriteISO(path, m, Options{})
		time.Local = old
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		isos = append(isos, p)
		out, err := exec.Command("xorriso", "-indev", path, "-report_el_torito", "plain", "-find").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "BIOS") {
			t.Errorf("xorriso: %v\n%s", err, out)
		}
	}
	if !bytes.Equal(isos[0], isos[1]) {
		t.Error("two ISOs of one medium differ")
	}
}

func TestCompareVersions(t *testing.T) {
	for _, x := range []struct{ newer, older string }{
		{"6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"},
		{"6.10.1", "6.9.12"},
		{"6.1.0-56-cloud-amd64", "6.1.0-56-amd64"},
		{"5.10.224-1.ph4-esx", "5.10.22-9.ph4-esx"},
	} {
		if compareVersions(x.newer, x.older) <= 0 || compareVersions(x.older, x.newer) >= 0 {
			t.Errorf("%s is not newer than %s", x.newer, x.older)
		}
	}
}

// TestCompressedModules builds from a module folder whose files are compressed, as
// Photon's and Fedora's are.
func TestCompressedModules(t *testing.T) {
	oracle.Need(t, "xz")
	k, err := newestKernel("/boot", "/lib/modules")
	if err != nil {
		oracle.Missing(t, err)
	}
	plain, err := collectModules(k.modules)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"modules.builtin", "modules.alias", "modules.dep"} {
		p, err := os.ReadFile(filepath.Join(k.modules, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "modules.dep" {
			p = bytes.ReplaceAll(p, []byte(".ko"), []byte(".ko.xz"))
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0644); err != nil {
			t.Fatal(err)
		}
	}
	files, _, err := readDeps(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range plain {
		path := filepath.Join(dir, files[m.name])
		if err := os.MkdirAll(filepath.Dir(path), 0755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("xz", "-c", "--check=crc32")
		cmd.Stdin = bytes.NewReader(m.code)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, out, 0644); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := collectModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(packed) != len(plain) {
		t.Fatalf("%d modules from compressed files, %d from plain ones", len(packed), len(plain))
	}
	for i := range plain {
		if packed[i].indexLine() != plain[i].indexLine() || !bytes.Equal(packed[i].code, plain[i].code) {
			t.Errorf("module %s differs", plain[i].name)
		}
	}
}

// TestUnsigned takes signatures off modules, and nothing off what is no more than alike.
func TestUnsigned(t *testing.T) {
	info := func(n uint32) string { return string(binary.BigEndian.AppendUint32(make([]byte, 8), n)) }
	for _, c := range []struct{ name, module, want string }{
		{"signed", "code" + "sig" + info(3) + signatureMagic, "code"},
		{"empty signature", "code" + info(0) + signatureMagic, "code"},
		{"not signed", "code", "code"},
		{"size beyond the module", "code" + info(5) + signatureMagic, "code" + info(5) + signatureMagic},
		{"huge size", "code" + info(1<<32-1) + signatureMagic, "code" + info(1<<32-1) + signatureMagic},
		{"nothing but the magic", signatureMagic, signatureMagic},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := unsigned([]byte(c.module)); string(got) != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestNeedsSignatures keeps signatures where a kernel may ask for them.
func TestNeedsSignatures(t *testing.T) {
	for _, c := range []struct {
		name, file, config string
		want               bool
	}{
		{"not forced", "config-6.1", "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\n", false},
		{"not forced, beside the modules", "modules/config", "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\n", false},
		{"forced", "config-6.1", "CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n", true},
		{"another kernel's", "config-6.2", "\n# CONFIG_MODULE_SIG_FORCE is not set\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			k := kernel{path: filepath.Join(dir, "vmlinuz-6.1"), version: "6.1", modules: filepath.Join(dir, "modules")}
			if err := os.Mkdir(k.modules, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := k.needsSignatures(); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func FuzzPVHKernel(f *testing.F) {
	head := make([]byte, 0x400)
	copy(head[0x202:], "HdrS")
	head[0x1f1] = 1
	le.PutUint32(head[0x24c:], 16)
	f.Add(head)
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 8 && len(p) < 1<<16 {
			if len(p) >= 4 && le.Uint32(p[len(p)-4:]) > 1<<24 {
				return // asks for much memory, within the bound
			}
			pvhKernel(p)
			hasPVH(p)
		}
	})
}
