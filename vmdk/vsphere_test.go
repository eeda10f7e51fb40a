package vmdk

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	govmdk "github.com/vmware/govmomi/vmdk"
)

// flatChain is n disks as vSphere has them, without their files, the top first.
func flatChain(n int, capacity int64) []Link {
	links := []Link{{Descriptor: NewFlatDescriptor("base-flat.vmdk", capacity, 0x5)}}
	for i := range n - 1 {
		d := links[0].Descriptor.COWDChild(fmt.Sprint("d", i, "-delta.vmdk"), fmt.Sprint("d", i-1, ".vmdk"), uint32(i+100))
		links = append([]Link{{Descriptor: d}}, links...)
	}
	return links
}

func TestVSphereDescriptors(t *testing.T) {
	links := flatChain(2, 64<<30)
	for i, want := range []string{`# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=00000064
parentCID=00000005
createType="vmfsSparse"
parentFileNameHint="d-1.vmdk"
isNativeSnapshot="no"
# Extent description
RW 134217728 VMFSSPARSE "d0-delta.vmdk"

# The Disk Data Base
#DDB

ddb.longContentID = "LONG00000064"
`, `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=00000005
parentCID=ffffffff
createType="vmfs"
# Extent description
RW 134217728 VMFS "base-flat.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "8"
ddb.geometry.cylinders = "8354"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
ddb.longContentID = "LONG00000005"
ddb.thinProvisioned = "1"
ddb.uuid = "UUID"
`} {
		b, err := links[i].Descriptor.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got := regexp.MustCompile(`ContentID = "[0-9a-f]{24}`).ReplaceAllString(string(b), `ContentID = "LONG`)
		got = regexp.MustCompile(`"60 00 C2 9[0-9a-f]( [0-9a-f]{2}){4}-[0-9a-f]{2}( [0-9a-f]{2}){7}"`).ReplaceAllString(got, `"UUID"`)
		if got != want {
			t.Errorf("disk %d:\n%s\nwant\n%s", i, got, want)
		}
		if v, err := govmdk.ParseDescriptor(strings.NewReader(string(b))); err != nil || v.Type != links[i].Descriptor.CreateType || uint32(v.CID) != links[i].Descriptor.CID {
			t.Errorf("govmomi: %+v, %v", v, err)
		}
	}
	a, b := flatChain(2, 1<<30), flatChain(2, 1<<30)
	for i := range a {
		x, _ := a[i].Descriptor.Marshal()
		if y, _ := b[i].Descriptor.Marshal(); string(x) != string(y) {
			t.Error("described again: other text")
		}
	}
	ids := make(map[string]bool)
	for _, l := range flatChain(20, 1<<30) {
		for _, e := range l.Descriptor.DDB {
			if e.Key == "ddb.longContentID" {
				ids[e.Value[:24]] = true
			}
		}
	}
	if len(ids) != 20 {
		t.Errorf("%d content IDs for 20 disks", len(ids))
	}
}

func TestCheckVSphere(t *testing.T) {
	const capacity = 1 << 20
	change := func(i int, change func(d *Descriptor)) []Link {
		links := flatChain(3, capacity)
		d := links[i].Descriptor
		d.Extents, d.DDB = slices.Clone(d.Extents), slices.Clone(d.DDB)
		change(d)
		return links
	}
	longID := func(id string) func(d *Descriptor) {
		return func(d *Descriptor) {
			for i := range d.DDB {
				if d.DDB[i].Key == "ddb.longContentID" {
					d.DDB[i].Value = id
				}
			}
		}
	}
	file := func(size int64) []Link {
		links := flatChain(1, capacity)
		links[0].Extents = []*Extent{OpenFlat(new(memFile), size)}
		return links
	}
	for _, c := range []struct {
		name  string
		links []Link
		want  string // "" if ESXi would take it
	}{
		{"whole", flatChain(3, capacity), ""},
		{"base alone", flatChain(1, capacity), ""},
		{"base file", file(capacity), ""},
		{"no longContentID", change(0, func(d *Descriptor) { d.DDB = nil }), ""},
		{"30 disks", flatChain(30, capacity), ""},
		{"31 disks", flatChain(31, capacity), "chain: 31 disks; vSphere supports 32 snapshots"},
		{"parent written since", change(1, func(d *Descriptor) { d.CID = 9; longID(strings.Repeat("0", 31) + "9")(d) }), "content ID mismatch (00000064 != 00000009)"},
		{"capacities", change(2, func(d *Descriptor) { d.Extents[0].Sectors++ }), "the capacity of each link is different: 2049 sectors, of the child 2048"},
		{"QEMU has rewritten the CID", change(0, func(d *Descriptor) { d.CID = 9 }), `ddb.longContentID: "`},
		{"longContentID too short", change(0, longID("65")), "does not end with the CID"},
		{"longContentID of other digits", change(0, longID(strings.Repeat("x", 24)+"00000065")), "does not end with the CID"},
		{"base missing", flatChain(3, capacity)[:2], "parentCID: 00000005 in disk 2 of 2"},
		{"two bases", append(flatChain(1, capacity), flatChain(1, capacity)...), "parentCID: ffffffff in disk 1 of 2"},
		{"hosted delta", change(0, func(d *Descriptor) { d.CreateType, d.Extents[0].Type = "twoGbMaxExtentSparse", "SPARSE" }), "unsupported or invalid disk type twoGbMaxExtentSparse: a delta is"},
		{"hosted base", change(2, func(d *Descriptor) { d.CreateType, d.Extents[0].Type = "streamOptimized", "SPARSE" }), "unsupported or invalid disk type streamOptimized: a base disk is vmfs"},
		{"KDMV extent called vmfsSparse", change(0, func(d *Descriptor) { d.Extents[0].Type = "SPARSE" }), "vmfsSparse with an extent of type SPARSE"},
		{"two extents", change(0, func(d *Descriptor) { d.Extents = append(d.Extents, d.Extents[0]) }), "vmfsSparse with 2 extents"},
		{"mixed", change(1, func(d *Descriptor) { d.CreateType, d.Extents[0].Type = "seSparse", "SESPARSE" }), "seSparse below vmfsSparse: they cannot be mixed"},
		{"2 TiB", flatChain(2, 1<<41), "vmfsSparse is for disks below 2 TiB"},
		{"no adapter", change(2, func(d *Descriptor) { d.DDB = nil }), "ddb.adapterType: is missing"},
		{"flat file too long", file(capacity + 512), `2049 sectors in "base-flat.vmdk"`},
		{"embedded descriptor", []Link{{}}, "descriptor: is not a file of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckVSphere(c.links)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
