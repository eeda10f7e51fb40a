package vmdk

import (
	"slices"
	"testing"
)

// sameAsMap compares a disk's runs with qemu-img map.
func sameAsMap(t testing.TB, d *Disk, name string) {
	t.Helper()
	if got, want := runsOf(t, d, 0), mapOf(t, name); !slices.Equal(got, want) {
		t.Errorf("runs differ from qemu-img map:\ngot  %v\nwant %v", got, want)
	}
}

// mapOf is what qemu-img map says, as runs.
func mapOf(t testing.TB, name string) []Run {
	t.Helper()
	var runs []Run
	for _, m := range qemuMapOf(t, name) {
		if m.Zero || !m.Present && !m.Data {
			continue
		}
		r := Run{Off: m.Start, Len: m.Length, Link: m.Depth}
		if n := len(runs); n > 0 && runs[n-1].Off+runs[n-1].Len == r.Off && runs[n-1].Link == r.Link {
			runs[n-1].Len += r.Len
			continue
		}
		runs = append(runs, r)
	}
	return runs
}

func runsOf(t testing.TB, d *Disk, off int64) []Run {
	t.Helper()
	var runs []Run
	for r, err := range d.Runs(off) {
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r)
	}
	return runs
}

func TestRuns(t *testing.T) {
	const capacity = 200 << 20
	base := memDisk(t, capacity)
	write := func(links []Link, offs ...int64) {
		t.Helper()
		d := openDisk(t, links)
		for _, off := range offs {
			if _, err := d.WriteAt([]byte{1}, off*grain); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(base, 0, 1, 2, 511, 512, 513, 3199)
	top := memDisk(t, capacity, base...)
	write(top, 1, 512, 2000)
	d := openDisk(t, top)
	all := []Run{
		{0, grain, 1}, {grain, grain, 0}, {2 * grain, grain, 1},
		{511 * grain, grain, 1}, {512 * grain, grain, 0}, {513 * grain, grain, 1},
		{2000 * grain, grain, 0}, {3199 * grain, grain, 1},
	}
	for _, c := range []struct {
		off  int64
		want []Run
	}{
		{0, all},
		{-5, all},
		{2*grain + 1, append([]Run{{2*grain + 1, grain - 1, 1}}, all[3:]...)},
		{3 * grain, all[3:]},
		{3199*grain + grain - 1, []Run{{3199*grain + grain - 1, 1, 1}}},
		{capacity, nil},
		{capacity + 1, nil},
	} {
		if got := runsOf(t, d, c.off); !slices.Equal(got, c.want) {
			t.Errorf("Runs(%d): got %v, want %v", c.off, got, c.want)
		}
	}
	for r := range d.Runs(0) { // may stop early
		if r != all[0] {
			t.Errorf("first run %v", r)
		}
		break
	}
}
