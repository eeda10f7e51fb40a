package vmdk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vic/bench/oracle"
)

func TestDescriptorGolden(t *testing.T) {
	base := NewDescriptor("base-delta.vmdk", 64<<30, 0x6ea734ed)
	child := base.Child("web-delta.vmdk", "base.vmdk", 0x186600d)
	for name, d := range map[string]*Descriptor{"base.vmdk.txt": base, "child.vmdk.txt": child} {
		b, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		got, err := ParseDescriptor(b)
		if err != nil {
			t.Fatal(err)
		}
		if got.Capacity() != 64<<30 {
			t.Errorf("%s: capacity %d", name, got.Capacity())
		}
		if len(d.DDB) == 0 {
			got.DDB = nil
		}
		if !reflect.DeepEqual(got, d) {
			t.Errorf("%s: got %+v, want %+v", name, got, d)
		}
	}
}

const sampleDescriptor = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=6ea734ed
parentCID=1155cbc5
isNativeSnapshot="no"
createType="vmfsSparse"
parentFileNameHint="ubuntu2_0.vmdk"
# Extent description
RW 16777216 VMFSSPARSE "ubuntu2_0-000002-delta.vmdk"

# The Disk Data Base
#DDB

ddb.longContentID = "ef8faaaac0db02a498a56e016ea734ed"
`

func TestParseDescriptor(t *testing.T) {
	want := &Descriptor{
		Version: 1, Encoding: "UTF-8", CID: 0x6ea734ed, ParentCID: 0x1155cbc5,
		CreateType: "vmfsSparse", ParentFileNameHint: "ubuntu2_0.vmdk",
		Header:  []Entry{{"isNativeSnapshot", "no"}},
		Extents: []ExtentLine{{Access: "RW", Sectors: 16777216, Type: "VMFSSPARSE", File: "ubuntu2_0-000002-delta.vmdk"}},
		DDB:     []Entry{{"ddb.longContentID", "ef8faaaac0db02a498a56e016ea734ed"}},
	}
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(sampleDescriptor) }
	for _, c := range []struct {
		name, text string
		change     func(d *Descriptor)
	}{
		{"as ESXi writes it", sampleDescriptor, func(*Descriptor) {}},
		{"CRLF", strings.ReplaceAll(sampleDescriptor, "\n", "\r\n"), func(*Descriptor) {}},
		{"padded with NULs", sampleDescriptor + strings.Repeat("\x00", 512), func(*Descriptor) {}},
		{"old text after a NUL", sampleDescriptor + "\x00CID=1\n", func(*Descriptor) {}},
		{"CID of 7 digits", replace("CID=6ea734ed\n", "CID=186600d\n"), func(d *Descriptor) { d.CID = 0x186600d }},
		{"empty line before the extent", replace("# Extent description", ""), func(*Descriptor) {}},
		{"no newline at the end", strings.TrimRight(sampleDescriptor, "\n"), func(*Descriptor) {}},
		{"no parentCID", replace("parentCID=1155cbc5\n", ""), func(d *Descriptor) { d.ParentCID = NoParent }},
		{"unquoted", replace(`"vmfsSparse"`, "vmfsSparse"), func(*Descriptor) {}},
		{"several extents", replace("RW 16777216", "RW 10 FLAT \"a b\" 7\nRDONLY 20 SPARSE \"c\"\nRW 30 ZERO\nRW 16777216"), func(d *Descriptor) {
			d.Extents = append([]ExtentLine{
				{Access: "RW", Sectors: 10, Type: "FLAT", File: "a b", Offset: 7},
				{Access: "RDONLY", Sectors: 20, Type: "SPARSE", File: "c"},
				{Access: "RW", Sectors: 30, Type: "ZERO"},
			}, d.Extents...)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseDescriptor([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			want := *want
			c.change(&want)
			if !reflect.DeepEqual(got, &want) {
				t.Errorf("got %+v, want %+v", got, &want)
			}
		})
	}
}

func TestParseDescriptorRefuses(t *testing.T) {
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(sampleDescriptor) }
	for _, c := range []struct{ name, text, field string }{
		{"empty", "", "descriptor"},
		{"NULs", "\x00\x00", "descriptor"},
		{"binary", "KDMV\x01", "descriptor"},
		{"byte order mark", "\xef\xbb\xbf" + sampleDescriptor, "descriptor"},
		{"2 MiB", sampleDescriptor + strings.Repeat("#", 2<<20), "descriptor"},
		{"no version", replace("version=1\n", ""), "version"},
		{"version 5", replace("version=1", "version=5"), "version"},
		{"no CID", replace("CID=6ea734ed\n", ""), "CID"},
		{"CID of 9 digits", replace("CID=6", "CID=06"), "CID"},
		{"CID twice", replace("CID=6ea734ed\n", "CID=6ea734ed\nCID=1\n"), "CID"},
		{"CID not hexadecimal", replace("CID=6ea734ed", "CID=6ea734eg"), "CID"},
		{"no createType", replace("createType", "creatType"), "createType"},
		{"no extent", replace("RW 1", "#RW 1"), "extent"},
		{"hint where QEMU does not look", replace("parentFileNameHint", strings.Repeat("#\n", 5100)+"parentFileNameHint"), "parentFileNameHint"},
		{"two hints", replace("createType", "parentFileNameHint=\"x\"\ncreateType"), "parentFileNameHint"},
		{"half a quote", replace(`="no"`, `="no`), "isNativeSnapshot"},
		{"quote inside", replace(`="no"`, `="n"o"`), "isNativeSnapshot"},
		{"no equals sign", replace("createType", "create\ncreateType"), "descriptor"},
		{"extent without size", replace("RW 16777216", "RW"), "extent"},
		{"extent of no sectors", replace("RW 16777216", "RW 0"), "extent"},
		{"extent of negative size", replace("RW 16777216", "RW -1"), "extent"},
		{"extents past 2^63 bytes", replace("RW 16777216", "RW 9007199254740991 ZERO\nRW 16777216"), "extent"},
		{"extent of unknown type", replace("VMFSSPARSE", "SPARS"), "extent"},
		{"extent without file", replace(` "ubuntu2_0-000002-delta.vmdk"`, ""), "extent"},
		{"extent with open quote", replace(`delta.vmdk"`, "delta.vmdk"), "extent"},
		{"words after the file", replace(`delta.vmdk"`, `delta.vmdk" x`), "extent"},
		{"offset in a sparse extent", replace(`delta.vmdk"`, `delta.vmdk" 8`), "extent"},
		{"ZERO with a file", replace("VMFSSPARSE", "ZERO"), "extent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseDescriptor([]byte(c.text))
			wantFormatError(t, err, c.field)
		})
	}
}

func TestMarshalRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(d *Descriptor)
		field  string
	}{
		{"CID 0", func(d *Descriptor) { d.CID = 0 }, "CID"},
		{"CID of no parent", func(d *Descriptor) { d.CID = NoParent }, "CID"},
		{"quote in the hint", func(d *Descriptor) { d.ParentFileNameHint = `a"b` }, "parentFileNameHint"},
		{"newline in the hint", func(d *Descriptor) { d.ParentFileNameHint = "a\nRW 1 ZERO" }, "parentFileNameHint"},
		{"hint that QEMU would not find", func(d *Descriptor) { d.ParentFileNameHint = strings.Repeat("x", headLimit) }, "parentFileNameHint"},
		{"hint without parent", func(d *Descriptor) { d.ParentCID = NoParent }, "parentFileNameHint"},
		{"parent without hint", func(d *Descriptor) { d.ParentFileNameHint = "" }, "parentFileNameHint"},
		{"encoding that QEMU takes for a CID", func(d *Descriptor) { d.Encoding = "CID" }, "encoding"},
		{"no createType", func(d *Descriptor) { d.CreateType = "" }, "createType"},
		{"no extent", func(d *Descriptor) { d.Extents = nil }, "extent"},
		{"quote in a file name", func(d *Descriptor) { d.Extents[0].File = `a"b` }, "extent"},
		{"newline in a file name", func(d *Descriptor) { d.Extents[0].File = "a\nb" }, "extent"},
		{"space in an access", func(d *Descriptor) { d.Extents[0].Access = "RW 1" }, "extent"},
		{"offset in a sparse extent", func(d *Descriptor) { d.Extents[0].Offset = 1 }, "extent"},
		{"known key as entry", func(d *Descriptor) { d.Header = []Entry{{"CID", "1"}} }, "header entry"},
		{"newline in an entry", func(d *Descriptor) { d.Header = []Entry{{"a", "b\nc"}} }, "header entry"},
		{"key outside the data base", func(d *Descriptor) { d.DDB = []Entry{{"db.a", "b"}} }, "disk data base entry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewDescriptor("base-delta.vmdk", 1<<30, 1).Child("a-delta.vmdk", "base.vmdk", 2)
			c.change(d)
			_, err := d.Marshal()
			wantFormatError(t, err, c.field)
		})
	}
}

func TestMarshalKeepsLongContentIDInStep(t *testing.T) {
	d, err := ParseDescriptor([]byte(sampleDescriptor))
	if err != nil {
		t.Fatal(err)
	}
	d.CID = 0x00c0ffee
	b, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if want := `ddb.longContentID = "ef8faaaac0db02a498a56e0100c0ffee"`; !strings.Contains(string(b), want) {
		t.Errorf("got:\n%swant a line %s", b, want)
	}
}

func TestCIDFor(t *testing.T) {
	seen := make(map[uint32]string)
	for i := range 1000 {
		name := fmt.Sprint("layer ", i)
		cid := CIDFor(name)
		if cid == 0 || cid == NoParent {
			t.Errorf("CIDFor(%q) = %08x", name, cid)
		}
		if cid != CIDFor(name) {
			t.Errorf("CIDFor(%q) changes", name)
		}
		if seen[cid] != "" {
			t.Errorf("CIDFor(%q) = CIDFor(%q)", name, seen[cid])
		}
		seen[cid] = name
	}
}

// TestDescriptorQEMURewritesCID lets QEMU change the CID in a descriptor, as it
// does on the first write after each open, and reads the result.
func TestDescriptorQEMURewritesCID(t *testing.T) {
	oracle.Need(t, "qemu-io")
	dir := t.TempDir()
	const capacity = 40 << 20
	disk := filepath.Join(dir, "a.vmdk")
	old := NewDescriptor("a-delta.vmdk", capacity, CIDFor("a"))
	writeDescriptor(t, disk, old)
	f := createFile(t, filepath.Join(dir, "a-delta.vmdk"))
	if err := CreateExtent(f, capacity); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 7 1M 64k", disk)
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		d, err := ParseDescriptor(b)
		if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		if d.CID == old.CID {
			t.Errorf("CID is still %08x", d.CID)
		}
		d.CID = old.CID
		if !reflect.DeepEqual(d, old) {
			t.Errorf("got %+v, want %+v", d, old)
		}
	}
	if err := Check(openChain(t, disk, os.O_RDONLY)); err != nil {
		t.Error(err)
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(sampleDescriptor))
	f.Add([]byte(strings.ReplaceAll(sampleDescriptor, "\n", "\r\n") + "\x00\x00"))
	f.Add([]byte("# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=x\nRW 10 FLAT \"a b\" 7\nRDONLY 20 SPARSE \"c\"\nRW 30 ZERO\n"))
	seeds, err := filepath.Glob("testdata/*.vmdk.txt")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds in testdata", err)
	}
	for _, name := range seeds {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseDescriptor(text)
		if err != nil {
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("not a FormatError: %v", err)
			}
			return
		}
		b, err := d.Marshal()
		if err != nil {
			return // readable, but not for every reader
		}
		again, err := ParseDescriptor(b)
		if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		c, err := again.Marshal()
		if err != nil || string(c) != string(b) {
			t.Fatalf("%v; wrote\n%s\nand then\n%s", err, b, c)
		}
		if again.CID != d.CID || again.ParentCID != d.ParentCID || again.ParentFileNameHint != d.ParentFileNameHint ||
			!reflect.DeepEqual(again.Extents, d.Extents) {
			t.Fatalf("%+v reads back as %+v", d, again)
		}
	})
}
