package vch

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// problem is what stands against a creation.
func (l *lab) problem(o CreateOptions) string {
	l.Helper()
	_, err := l.site.Create(l.Context(), o)
	if err == nil {
		return ""
	}
	return err.Error()
}

// What is changed on a host that a vCenter manages the vCenter does not know.
func TestManagedHost(t *testing.T) {
	l := newLab(t, vcsim.Options{ESX: true, Manager: "192.0.2.7"})
	l.serve()
	if got := l.problem(l.options()); !strings.Contains(got, "is managed by the vCenter 192.0.2.7: change --target to that") {
		t.Error(got)
	}
}

// Two VCHs have no bridge networks in the same range on one port group. What should be known is told, and the vCenter keeps serial ports over a
// vMotion from the first VCH on.
func TestNeighbours(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	const step = "set config.vpxd.SerialPort.PersistNetworkBacking of the vCenter"
	plans := func(o CreateOptions) *Plan {
		t.Helper()
		plan, err := l.site.Create(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	sets := func(p *Plan) bool {
		return slices.ContainsFunc(p.Steps(), func(s string) bool { return strings.HasPrefix(s, step) })
	}
	first := l.options()
	if p := plans(first); !sets(p) || len(p.Warnings) > 0 {
		t.Errorf("steps %q, warnings %q", p.Steps(), p.Warnings)
	}
	l.create(first)
	m := object.NewOptionManager(l.site.client, *l.site.client.ServiceContent.Setting)
	if found, err := m.Query(t.Context(), persistenceKey); err != nil || len(found) != 1 || found[0].GetOptionValue().Value != "true" {
		t.Errorf("the vCenter has %v, %v", found, err)
	}
	second := l.options()
	second.Spec.Name = "vch2"
	if got := l.problem(second); !strings.Contains(got, "--bridge-network: port group bridge is that of VCH vch1 as well, with bridge networks in 172.16.0.0/12") {
		t.Error(got)
	}
	second.Spec.BridgeRange = "10.64.0.0/16"
	for _, e := range l.Service.Context.Map.All("Datastore") {
		l.Service.Context.Update(e, []types.PropertyChange{{Name: "summary.freeSpace", Val: int64(10 << 30)}})
	}
	second.Spec.StorageQuota = 11
	second.Spec.Insecure = []string{l.URL().Host, "127.0.0.1:1", "10.0.0.0/8"}
	second.Spec.Whitelist = []string{"*.example.org", "127.0.0.1:1"}
	p := plans(second)
	if sets(p) {
		t.Errorf("the setting is made again: %q", p.Steps())
	}
	if len(p.Warnings) != 2 || !strings.HasPrefix(p.Warnings[0], "--storage-quota: datastore datastore1 has ") || !strings.HasPrefix(p.Warnings[1], "registry 127.0.0.1:1 cannot be reached from here") {
		t.Errorf("warnings %q", p.Warnings)
	}
}
