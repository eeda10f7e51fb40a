package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// applianceCmdline has the screen of a VM as well as a serial port show what is said, and leaves the kernel's
// addresses random: an appliance boots seldom, and lives long.
const applianceCmdline = "console=tty0 console=ttyS0 quiet cryptomgr.notests no_timer_check dummy.numdummies=0 panic=10"

// applianceModules are for the power button, and for what keeps the kernel's own network off the bridge network's interface
// (package network).
var applianceModules = []string{"button", "evdev", "sch_ingress", "cls_bpf"}

// debianCertificates is where Debian's package ca-certificates puts the authorities that the world trusts.
const debianCertificates = "/etc/ssl/certs/ca-certificates.crt"

// An Appliance is what the VM boots in which a VCH runs.
type Appliance struct {
	// Init is the static binary that runs as PID 1, and VIC the one that it runs.
	Init, VIC string
	// Certificates is a file of authorities, PEM. "" means Debian's.
	Certificates string
	// Release names what is built, for people.
	Release string
	// Key is a further archive for the kernel, which may be replaced in the ISO by another of its length.
	Key []byte
}

// BuildAppliance makes the medium of an appliance as Build makes that of a container VM. The options are those of the
// container VMs: their kernel, modules, tether and boot loader are in it, where vic finds them that is in it, too, and the
// appliance boots the same kernel. Its initramfs has, beside what one has for containers:
//
//	/bin/vic, tether   with /bin/kernel: vmlinuz and the modules for containers
//	/usr/lib/…         ISOLINUX
//	/etc/ssl/certs     the authorities
//	/version           the release
func BuildAppliance(ctx context.Context, dir string, o Options, a Appliance) (*Medium, error) {
	k, err := findKernel(o)
	if err != nil {
		return nil, err
	}
	c := contents{cmdline: applianceCmdline, key: a.Key, release: []byte(a.Release + "\n")}
	if err := c.addKernel(k, applianceModules...); err != nil {
		return nil, err
	}
	if c.init, err = readProgram(a.Init); err != nil {
		return nil, err
	}
	for _, p := range []struct{ name, from string }{{"bin/vic", a.VIC}, {"bin/tether", o.Tether}} {
		data, err := readProgram(p.from)
		if err != nil {
			return nil, err
		}
		c.files = append(c.files, entry{p.name, modeProgram, data})
	}
	if a.Certificates == "" {
		a.Certificates = debianCertificates
	}
	o.findLoader()
	for _, f := range []struct{ name, from string }{
		{"etc/ssl/certs/ca-certificates.crt", a.Certificates}, {debianISOLINUX[1:], o.ISOLINUX}, {debianLDLINUX[1:], o.LDLINUX},
	} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, loaderError(err, f.from)
		}
		c.files = append(c.files, entry{f.name, modeFile, data})
	}
	c.files = append(c.files, entry{"version", modeFile, c.release}, entry{"bin/kernel/vmlinuz", modeFile, c.image})
	modules, err := k.folder(c.mods)
	if err != nil {
		return nil, fmt.Errorf("collect modules of kernel %s: %w", k.version, err)
	}
	for name, data := range modules {
		c.files = append(c.files, entry{path.Join("bin/kernel", name), modeFile, data})
	}
	c.addFolders("etc/vic", "root", "run", "tmp", "var/lib/vic")
	return c.build(ctx, dir)
}

// folder is a module folder that has these modules alone, and the kernel's configuration, for another Build.
func (k kernel) folder(mods []module) (map[string][]byte, error) {
	files, _, err := readDeps(k.modules)
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	here := map[string]bool{}
	for _, m := range mods {
		here[m.name] = true
		if all[files[m.name]], err = os.ReadFile(filepath.Join(k.modules, files[m.name])); err != nil {
			return nil, err
		}
	}
	// A line of the first begins with a file, one of the second ends with a name.
	for name, owner := range map[string]func(line string) string{
		"modules.dep":     func(line string) string { file, _, _ := strings.Cut(line, ":"); return moduleName(file) },
		"modules.alias":   func(line string) string { return line[strings.LastIndexByte(line, ' ')+1:] },
		"modules.builtin": nil,
	} {
		text, err := os.ReadFile(filepath.Join(k.modules, name))
		if err != nil && !(name == "modules.builtin" && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
		var kept bytes.Buffer
		for line := range strings.Lines(string(text)) {
			if owner == nil || here[owner(strings.TrimSpace(line))] {
				kept.WriteString(line)
			}
		}
		all[name] = kept.Bytes()
	}
	for _, path := range k.configs() {
		if text, err := os.ReadFile(path); err == nil {
			all["config"] = text
			break
		}
	}
	return all, nil
}

// addFolders adds these folders and those that files are in, and sorts all so that a folder comes before what is in it.
func (c *contents) addFolders(folders ...string) {
	for _, f := range c.files {
		folders = append(folders, path.Dir(f.path))
	}
	all := map[string]bool{".": true}
	for _, f := range folders {
		for ; !all[f]; f = path.Dir(f) {
			all[f] = true
			c.files = append(c.files, entry{path: f, mode: modeFolder})
		}
	}
	slices.SortFunc(c.files, func(a, b entry) int { return strings.Compare(a.path, b.path) })
}
