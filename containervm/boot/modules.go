package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds what a compressed module may unpack to.
const maxModule = 64 << 20

// wanted lists the modules that a container VM may need, by what they are for. A kernel
// may have them built in; what it lacks, its VMs do without, except that there must be
// one way to a disk.
var wanted = []want{
	{name: "virtio_pci"},
	{name: "virtio_blk", disk: true},
	{name: "virtio_net"},
	{name: "virtio_console"},
	{name: "virtio_scsi", disk: true},
	{name: "virtio_rng"},
	{name: "virtiofs"},
	{name: "vmw_pvscsi", disk: true},
	{name: "sd_mod"},
	{name: "vmxnet3"},
	{name: "nf_tables"}, // these are loaded for filters
	{name: "nft_ct"},
	{name: "nft_chain_nat"},
	{name: "nft_redir"},
	{name: "ext4", always: true},
	{name: "pvpanic_pci"},
}

type want struct {
	name   string
	always bool // no device asks for it
	disk   bool
}

// A module is one in the initramfs.
type module struct {
	name    string
	deps    []string // in loading order
	aliases []string
	code    []byte // uncompressed
}

func (m module) indexLine() string {
	deps := strings.Join(m.deps, ",")
	if deps == "" {
		deps = "-"
	}
	return strings.Join(append([]string{m.name, deps}, m.aliases...), " ")
}

// collectModules reads the wanted modules, further ones that no device asks for, and what they depend on from a module folder.
func collectModules(dir string, further ...string) ([]module, error) {
	files, deps, err := readDeps(dir)
	if err != nil {
		return nil, err
	}
	builtin, err := readBuiltin(dir)
	if err != nil {
		return nil, err
	}
	aliases, err := readAliases(dir)
	if err != nil {
		return nil, err
	}
	found := make(map[string]module)
	disk := false
	all := slices.Clone(wanted)
	for _, name := range further {
		all = append(all, want{name: name, always: true})
	}
	for _, w := range all {
		if builtin[w.name] {
			disk = disk || w.disk
			continue
		}
		if files[w.name] == "" {
			continue
		}
		disk = disk || w.disk
		m := module{name: w.name, deps: deps[w.name], aliases: aliases[w.name]}
		if w.always {
			m.aliases = []string{"*"}
		}
		found[w.name] = m
		for _, d := range deps[w.name] {
			if _, ok := found[d]; !ok {
				found[d] = module{name: d, deps: deps[d]}
			}
		}
	}
	if !disk {
		return nil, fmt.Errorf("%s has none of the disk drivers virtio_blk, virtio_scsi, vmw_pvscsi", dir)
	}
	var list []module
	for name, m := range found {
		if files[name] == "" {
			return nil, fmt.Errorf("modules.dep names %s only as a dependency", name)
		}
		if m.code, err = readModule(filepath.Join(dir, files[name])); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

// needsSignatures says whether the kernel may refuse modules without a signature: it was built to, or nobody says
// that it was not.
func (k kernel) needsSignatures() bool {
	for _, path := range k.configs() {
		if text, err := os.ReadFile(path); err == nil {
			return !bytes.Contains(text, []byte("\n# CONFIG_MODULE_SIG_FORCE is not set\n"))
		}
	}
	return true
}

// configs are where the kernel's configuration may be.
func (k kernel) configs() []string {
	return []string{filepath.Join(filepath.Dir(k.path), "config-"+k.version), filepath.Join(k.modules, "config")}
}

// signatureMagic ends a module with a signature. Before it are struct module_signature, of which the last 4 bytes are the
// size of the signature, big-endian, and before that the signature (include/linux/module_signature.h).
const (
	signatureMagic = "~Module signature appended~\n"
	signatureInfo  = 12 // size of struct module_signature
)

// unsigned returns a module without its signature, whose verification is a good part of loading it under emulation.
// Who could change the initramfs could change the kernel, too.
func unsigned(code []byte) []byte {
	rest, ok := bytes.CutSuffix(code, []byte(signatureMagic))
	n := len(rest) - signatureInfo
	if !ok || n < 0 {
		return code
	}
	if n -= int(binary.BigEndian.Uint32(rest[len(rest)-4:])); n < 0 {
		return code
	}
	return rest[:n]
}

// moduleName is the name of a module by its file: dashes are underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readDeps parses modules.dep: "FILE: FILE…", the dependencies listed so that the last
// is to be loaded first (depmod.d, kmod's modules.dep(5)).
func readDeps(dir string) (files map[string]string, deps map[string][]string, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, nil, err
	}
	files, deps = make(map[string]string), make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		name := moduleName(file)
		files[name] = file
		for _, d := range slices.Backward(strings.Fields(rest)) {
			deps[name] = append(deps[name], moduleName(d))
		}
	}
	return files, deps, nil
}

// readBuiltin parses modules.builtin, a file a line; a kernel without modules built in
// may have none.
func readBuiltin(dir string) (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	names := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		names[moduleName(strings.TrimSpace(line))] = true
	}
	return names, nil
}

// readAliases parses modules.alias: "alias PATTERN NAME".
func readAliases(dir string) (map[string][]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	names := make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			continue
		}
		for _, bus := range []string{"pci:", "virtio:", "scsi:"} {
			if strings.HasPrefix(f[1], bus) {
				names[f[2]] = append(names[f[2]], f[1])
			}
		}
	}
	return names, nil
}

// readModule reads a module file, unpacking it if it is compressed.
func readModule(path string) ([]byte, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch filepath.Ext(path) {
	case ".ko":
		return p, nil
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(p))
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(p)); err == nil {
			defer z.Close()
			r = z
		}
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(p))
	default:
		return nil, fmt.Errorf("module %s is compressed in a way we do not know", path)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", path, err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", path, err)
	}
	if len(out) > maxModule {
		return nil, fmt.Errorf("module %s unpacks to more than %d bytes", path, maxModule)
	}
	return out, nil
}
