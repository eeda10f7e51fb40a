package vsphere

import (
	"os"
	"testing"

	"vic/bench/vcsim"
	"vic/containervm"
)

var _ containervm.Meter = (*Driver)(nil)

// What containers take up is what the files of their VMs have, without swap files, and not what else is in the container store.
func TestContainerBytes(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	measure := func(id string) map[string]containervm.Bytes {
		t.Helper()
		all, err := s.ContainerBytes(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := measure(""); len(all) != 0 {
		t.Errorf("%v of no containers", all)
	}
	id := s.create(1)
	before := measure("")[id]
	for _, x := range []struct {
		path string
		n    int64
	}{{s.file(id, "output-1.log"), 1000}, {s.file(id, "disk-000001-delta.vmdk"), 300}, {s.file(id, "box.vswp"), 1 << 30}, {s.file("appliance", ""), 0}, {s.file("appliance", "console.log"), 500}} {
		if x.n == 0 {
			if err := os.MkdirAll(x.path, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(x.path, nil, 0o644); err != nil {
			t.Fatal(err)
		} else if err := os.Truncate(x.path, x.n); err != nil {
			t.Fatal(err)
		}
	}
	other := s.create(2)
	if all := measure(""); len(all) != 2 || all[other].Disk == 0 {
		t.Errorf("%v of two containers", all)
	}
	if after := measure(id); len(after) != 1 || before.Disk == 0 || after[id] != (containervm.Bytes{Disk: before.Disk + 300, Rest: before.Rest + 1000}) {
		t.Errorf("%v, before that %v", after, before)
	}
	if err := s.RemoveContainer(id); err != nil {
		t.Fatal(err)
	}
	if all := measure(id); len(all) != 0 {
		t.Errorf("%v after the removal", all)
	}
	if all := measure(""); len(all) != 1 {
		t.Errorf("%v after the removal", all)
	}
}
