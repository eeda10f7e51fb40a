// Package vic_test holds the table of who may import whom.
package vic_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed lists, for each package of the module, the packages of the module that its
// code (not its tests) may import. Data flows registry → fetch → layerstore → diskfs →
// vmdk → datastore, and imports point one way.
var allowed = map[string][]string{
	"vmdk":                  {},
	"diskfs":                {},
	"fetch":                 {},
	"fetch/archive":         {"fetch"},
	"tether/wire":           {},
	"tether/guestrpc":       {},
	"tether":                {"tether/guestrpc", "tether/wire"},
	"layerstore":            {"diskfs", "layerstore/inflate", "vmdk"},
	"layerstore/inflate":    {},
	"layerstore/mount":      {"diskfs", "layerstore", "vmdk"},
	"layerstore/vsphere":    {"layerstore", "vmdk"},
	"containervm":           {"diskfs", "layerstore", "tether/wire"},
	"containervm/boot":      {},
	"containervm/appliance": {"tether/wire"},
	"containervm/network":   {"containervm", "tether/wire"},
	"containervm/qemu":      {"containervm", "containervm/qemu/qmp", "tether/wire"},
	"containervm/vspc":      {"containervm/vspc/telnet"},
	"containervm/vmname":    {},
	"containervm/vmgroup":   {"layerstore/vsphere"},
	"containervm/vsphere":   {"containervm", "containervm/vmgroup", "containervm/vmname", "layerstore", "layerstore/vsphere", "tether/wire", "vmdk"},
	"api":                   {"api/build", "containervm", "diskfs", "fetch", "fetch/archive", "layerstore"},
	"api/certificate":       {},
	"api/build":             {"containervm", "fetch/archive", "layerstore"},
	"containervm/vch":       {"api/certificate", "containervm/appliance", "containervm/vmgroup", "containervm/vmname", "fetch", "layerstore/vsphere", "tether/wire"},
	"cmd/vic-machine":       {"api/certificate", "containervm/vch", "layerstore/vsphere"},
	"cmd/appliance":         {"containervm/appliance", "diskfs", "tether", "tether/wire"},
	"cmd/tether":            {"tether"},
	"cmd/vic":               {"api", "api/certificate", "bench", "bench/corpus", "bench/layout", "containervm", "containervm/appliance", "containervm/boot", "containervm/network", "containervm/qemu", "containervm/vmname", "containervm/vspc", "containervm/vsphere", "diskfs", "fetch", "fetch/archive", "layerstore", "layerstore/mount", "layerstore/vsphere"},
	"cmd/vic/acceptance":    {},
	"cmd/vic/compat":        {},
	"cmd/demo":              {"bench/testimage"},
	"cmd/vcsim":             {"bench/vcsim", "bench/vcsim/bridge"},
	"bench/testimage":       {"bench/layout"},
	"bench/mount":           {"bench"},
	"bench/start":           {"bench", "bench/testimage"},
	"bench":                 {"bench/chart", "bench/corpus", "bench/layout", "diskfs", "fetch", "layerstore/inflate", "vmdk"},
	"bench/chart":           {},
	"bench/corpus":          {"bench/layout"},
	"bench/layout":          {},
	"bench/oracle":          {},
	"bench/figures":         {"bench/testimage"},
	"bench/vsphere":         {"bench", "bench/corpus", "containervm", "containervm/vsphere", "fetch/archive", "layerstore", "layerstore/vsphere", "tether/wire"},
	"bench/vcsim":           {"vmdk"},
	"bench/vcsim/bridge":    {"bench/vcsim", "containervm/qemu/qmp", "containervm/vspc/telnet", "tether/wire"},

	"cmd/vic/compat/suites":   {"bench/testimage"},
	"containervm/qemu/qmp":    {},
	"containervm/vspc/telnet": {},
}

// tetherModules are all modules that PID 1 may link.
var tetherModules = []string{"golang.org/x/sys", "github.com/insomniacslk/dhcp", "github.com/vishvananda/netlink", "github.com/creack/pty", "github.com/google/nftables", "github.com/mdlayher/netlink", "github.com/moby/sys", "github.com/moby/sys/user",
	"github.com/mdlayher/packet", "github.com/mdlayher/socket", "github.com/u-root/uio", "golang.org/x/net", "golang.org/x/sync", "github.com/vishvananda/netns", "github.com/josharian/native", "github.com/pierrec/lz4/v4", "github.com/cespare/xxhash/v2"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
	Standard   bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,Module,Standard"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, "vic/")
		if name == "vic" {
			continue // this test
		}
		may, ok := allowed[name]
		if !ok {
			t.Errorf("package %s is not in the import table: which package owns its noun?", name)
		}
		for _, i := range p.Imports {
			if i, ours := strings.CutPrefix(i, "vic/"); ours && !slices.Contains(may, i) {
				t.Errorf("%s imports %s, the table allows %v", name, i, may)
			}
		}
	}
}

func TestTetherIsSmall(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/tether") {
		if p.Standard || p.Module == nil || p.Module.Path == "vic" {
			continue
		}
		if !slices.Contains(tetherModules, p.Module.Path) {
			t.Errorf("cmd/tether links %s", p.ImportPath)
		}
	}
}
