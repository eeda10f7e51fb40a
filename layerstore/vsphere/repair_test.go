package vsphere

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/layerstore"
)

// Repair sends what was uploaded again, unless a machine runs on it or nobody has its layer; what the server made it leaves, and says why.
func TestRepair(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	d := s.datastore(c, "store")
	st, err := OpenStore(ctx, d, StoreOptions{VCH: "one", Capacity: capacity, Encoding: Hosted})
	if err != nil {
		t.Fatal(err)
	}
	ls, img := pulled(t, 3)
	p, err := st.Publish(ctx, ls, img)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(s.folder(d), d.root, "disks", name) }
	low := p.Disks[1]
	extent := at(low + "-delta.vmdk")
	was, err := os.ReadFile(extent)
	if err != nil {
		t.Fatal(err)
	}
	flip := func() {
		t.Helper()
		p := bytes.Clone(was)
		p[len(p)-600] ^= 1
		if err := os.WriteFile(extent, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	repair := func(o RepairOptions) (done []layerstore.Repaired, left []layerstore.Finding) {
		t.Helper()
		left, _, err := st.Repair(ctx, o, func(layerstore.Finding) {}, func(r layerstore.Repaired) { done = append(done, r) })
		if err != nil {
			t.Fatal(err)
		}
		return done, left
	}
	keeps := func(o RepairOptions, why string) {
		t.Helper()
		done, left := repair(o)
		if len(done) != 0 || len(left) != 1 || !strings.Contains(left[0].Unrepaired, why) || !strings.Contains(left[0].Problem, "checksum") {
			t.Errorf("done %+v, left %+v, want one that says %q", done, left, why)
		}
	}
	deep := CheckOptions{Deep: true}
	flip()
	vm := s.createVM("runs")
	s.attachTo(vm, d.Path("disks/"+p.Disks[0]+".vmdk"))
	keeps(RepairOptions{CheckOptions: deep, From: ls}, "virtual machine runs runs on it")
	s.destroy(vm)
	empty, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	keeps(RepairOptions{CheckOptions: deep, From: empty}, "its layer is not in the local store")
	if err := st.AddNames(ctx, img.ID, "registry.local/x:1"); err != nil {
		t.Fatal(err)
	}
	asked := ""
	keeps(RepairOptions{CheckOptions: deep, From: empty, Fetch: func(_ context.Context, name string) error { asked = name; return errors.New("no such registry") }}, "no such registry")
	if asked != "registry.local/x:1" {
		t.Errorf("asked for %q", asked)
	}
	if err := os.WriteFile(at(strings.Repeat("ab", 32)+"-0123456789ab-delta.vmdk"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, left := repair(RepairOptions{CheckOptions: deep, From: ls})
	if len(done) != 2 || len(left) != 0 || !strings.Contains(done[0].Done, low) || !strings.Contains(done[1].Done, "nobody needs") {
		t.Errorf("done %+v, left %+v", done, left)
	}
	if now, err := os.ReadFile(extent); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the extent has other bytes: %v", err)
	}
	check(t, st, ls)
	if done, left := repair(RepairOptions{CheckOptions: deep, From: ls}); len(done)+len(left) != 0 {
		t.Errorf("of a sound store: %+v, %+v", done, left)
	}

	// A disk that the server made is found by comparing, and stays.
	few, err := OpenStore(ctx, s.datastore(c, "few"), StoreOptions{VCH: "one", Capacity: capacity, Encoding: Flattened})
	if err != nil {
		t.Fatal(err)
	}
	made, err := few.Publish(ctx, ls, img)
	if err != nil {
		t.Fatal(err)
	}
	flat := filepath.Join(s.folder(d), "few", "disks", made.Disks[0]+"-flat.vmdk")
	f, err := os.OpenFile(flat, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damaged"), 1024); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	left, _, err = few.Repair(ctx, RepairOptions{CheckOptions: CheckOptions{Local: ls}, From: ls}, func(layerstore.Finding) {}, func(r layerstore.Repaired) { t.Errorf("done %+v", r) })
	if err != nil || len(left) != 1 || !strings.Contains(left[0].Unrepaired, "the server has made it") {
		t.Errorf("left %+v, %v", left, err)
	}
}
