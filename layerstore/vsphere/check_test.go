package vsphere

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/diskfs"
	"vic/layerstore"
)

// check checks a store and compares what it finds: parts of problems, in order.
func check(t *testing.T, st *Store, local *layerstore.Store, want ...string) *Checked {
	t.Helper()
	var got []layerstore.Finding
	done, err := st.Check(t.Context(), CheckOptions{Local: local}, func(f layerstore.Finding) { got = append(got, f) })
	if err != nil {
		t.Fatal(err)
	}
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		ok = ok && strings.Contains(got[i].Problem, want[i]) && got[i].Path != "" && got[i].Advice != ""
	}
	if !ok {
		t.Errorf("found %+v, want %q", got, want)
	}
	return done
}

// Stores of all encodings are whole, compare with the local store byte for byte, and can be read.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		encoding Encoding
		kind     string
		disks    int
	}{
		{VMFSSparse, vcsim.VMFS5, 4},
		{Hosted, vcsim.VMFS6, 4},
		{BlockWriter, vcsim.VMFS6, 2},
		{Flattened, vcsim.VMFS6, 2},
	} {
		t.Run(string(tt.encoding), func(t *testing.T) {
			s, ctx := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Type: tt.kind}}}), t.Context()
			c := s.connect(s.endpoint())
			d := s.datastore(c, "store")
			own, _ := s.appliance(c, s.export())
			st, err := OpenStore(ctx, d, StoreOptions{VCH: "one", Capacity: capacity, Encoding: tt.encoding, Own: own})
			if err != nil {
				t.Fatal(err)
			}
			ls, img := pulled(t, 2)
			if _, err := st.Publish(ctx, ls, img); err != nil {
				t.Fatal(err)
			}
			more := image(t, ls, 3)
			if _, err := st.Publish(ctx, ls, more); err != nil {
				t.Fatal(err)
			}
			if done := check(t, st, ls); *done != (Checked{Disks: tt.disks, Images: 2, Compared: tt.disks}) {
				t.Errorf("checked %+v", *done)
			}
			empty, err := layerstore.Open(t.TempDir(), layerstore.Options{Capacity: capacity})
			if err != nil {
				t.Fatal(err)
			}
			defer empty.Close()
			known := tt.disks
			if tt.encoding.uploaded() {
				known-- // the empty file system is in every local store
			}
			if done := check(t, st, empty); done.Unknown != known {
				t.Errorf("without the layers: %+v", *done)
			}
			s.reads(st, ls, more)

			u, err := st.Usage(ctx)
			if err != nil || len(u.Disks) != tt.disks || len(u.Images) != 2 {
				t.Fatalf("usage %+v, %v", u, err)
			}
			for _, x := range u.Images {
				if x.VCH != "one" || x.Size == 0 || x.Own > x.Size || (x.ID == more.ID || tt.encoding == Flattened) != (x.Own > 0) {
					t.Errorf("image %+v", x)
				}
			}
		})
	}
}

// reads compares a file that is read from the datastore with what debugfs reads.
func (s *site) reads(st *Store, ls *layerstore.Store, img *layerstore.Image) {
	s.t.Helper()
	ctx := s.t.Context()
	d, err := st.OpenImage(ctx, img.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Close()
	remote, err := diskfs.Open(d, d.Capacity())
	if err != nil {
		s.t.Fatal(err)
	}
	raw := filepath.Join(s.t.TempDir(), "raw")
	local, err := ls.DiskPath(img)
	if err != nil {
		s.t.Fatal(err)
	}
	if out, err := exec.Command(oracle.Find(s.t, "qemu-img"), "convert", "-f", "vmdk", "-O", "raw", local, raw).CombinedOutput(); err != nil {
		s.t.Fatalf("qemu-img: %v: %s", err, out)
	}
	files := 0
	err = fs.WalkDir(remote, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || files == 5 {
			return err
		}
		files++
		got, err := fs.ReadFile(remote, name)
		if err != nil {
			return err
		}
		want, err := exec.Command(oracle.Find(s.t, "debugfs"), "-R", `cat "/`+name+`"`, raw).Output()
		if err != nil || len(got) == 0 || !bytes.Equal(got, want) {
			s.t.Errorf("%s has %d bytes, debugfs reads %d, %v", name, len(got), len(want), err)
		}
		return nil
	})
	if err != nil || files == 0 {
		s.t.Errorf("%d files, %v", files, err)
	}
	d.Close()
	if _, err := d.ReadAt(make([]byte, 1<<20), 32<<20); err == nil {
		s.t.Error("read a disk that is closed")
	}
}

// Each kind of damage is found, and said of what it is.
func TestCheckDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, which the race detector makes six times as long")
	}
	s, ctx := newSite(t, vcsim.Options{}), t.Context()
	d := s.datastore(s.connect(s.endpoint()), "store")
	st := s.store(d, "one")
	ls, img := pulled(t, 2)
	p, err := st.Publish(ctx, ls, img)
	if err != nil {
		t.Fatal(err)
	}
	disks := filepath.Join(s.folder(d), "store", "disks")
	images := filepath.Join(s.folder(d), "store", "vchs", "one", "images")
	top, below := filepath.Join(disks, p.Disks[0]), filepath.Join(disks, p.Disks[1])
	edit := func(path string, fn func([]byte) []byte) func() {
		t.Helper()
		was, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		there := err == nil
		if now := fn(slices.Clone(was)); now == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, now, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if there {
				err = os.WriteFile(path, was, 0o600)
			} else {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := func([]byte) []byte { return nil }
	set := func(from, to string) func([]byte) []byte {
		return func(p []byte) []byte {
			if !bytes.Contains(p, []byte(from)) {
				t.Fatalf("there is no %q in %q", from, p)
			}
			return bytes.Replace(p, []byte(from), []byte(to), 1)
		}
	}
	flip := func(p []byte) []byte {
		i := bytes.LastIndexFunc(p, func(r rune) bool { return r != 0 })
		p[i] ^= 1
		return p
	}
	for _, tt := range []struct {
		name string
		path string
		edit func([]byte) []byte
		want []string
	}{
		{"nothing", top + ".json", func(p []byte) []byte { return p }, nil},
		{"record gone", below + ".json", gone, []string{"its parent", "its disk"}},
		{"record cut off", top + ".json", func(p []byte) []byte { return p[:9] }, []string{"its disk"}},
		{"record of another layer", top + ".json", set(p.Disks[0][:8], "00000000"), []string{"its record is of layer"}},
		{"descriptor gone", top + ".vmdk", gone, []string{"its descriptor is not there"}},
		{"descriptor cut off", top + ".vmdk", func(p []byte) []byte { return p[:40] }, []string{"its descriptor: "}},
		{"content ID", top + ".vmdk", set("\nCID=", "\nCID=1"), []string{"its descriptor: "}},
		{"parent's content ID", top + ".vmdk", set("parentCID=", "parentCID=0\n#"), []string{"it was made over content ID 00000000"}},
		{"another parent", top + ".vmdk", set(p.Disks[1]+".vmdk", "base.vmdk"), []string{`names "base.vmdk"`}},
		{"extent gone", top + "-delta.vmdk", gone, []string{"-delta.vmdk is not there"}},
		{"extent cut off", top + "-delta.vmdk", func(p []byte) []byte { return p[:len(p)-512] }, []string{"bytes and had"}},
		{"extent's header", top + "-delta.vmdk", func(p []byte) []byte { p[0] = 'X'; return p }, []string{"its extent: "}},
		{"a byte of the extent", top + "-delta.vmdk", flip, []string{"is not what the layer has"}},
		{"a byte of the one below", below + "-delta.vmdk", flip, []string{"is not what the layer has"}},
		{"image cut off", filepath.Join(images, img.ID.Encoded()+".json"), func(p []byte) []byte { return p[:5] }, []string{"is cut off"}},
		{"image with a disk missing", filepath.Join(images, img.ID.Encoded()+".json"), set(p.Disks[1], p.Disks[2]), []string{"none of it"}},
		{"never finished", filepath.Join(disks, newName(img.Chain())+".vmdk"), func([]byte) []byte { return []byte("x") }, []string{"never finished"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undo := edit(tt.path, tt.edit)
			check(t, st, ls, tt.want...)
			undo()
			check(t, st, ls)
		})
	}
	t.Run("a chain that comes back", func(t *testing.T) {
		rec := diskRecord{Chain: img.Chain(), Parent: p.Disks[0]}
		text, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		undo := edit(top+".json", func([]byte) []byte { return text })
		defer undo()
		if _, err := st.OpenDisk(ctx, p.Disks[0]); err == nil || !strings.Contains(err.Error(), "come back to it") {
			t.Error(err)
		}
	})
	if _, err := st.OpenDisk(ctx, newName("")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a disk that is not there: %v", err)
	}
	for _, name := range []string{"", baseName} { // an image's record may name anything
		if _, err := st.OpenDisk(ctx, name); err == nil {
			t.Errorf("disk %q was opened", name)
		}
	}
	undo := edit(top+".vmdk", set("VMFSSPARSE", "SESPARSE"))
	if _, err := st.OpenDisk(ctx, p.Disks[0]); !errors.Is(err, ErrForeign) {
		t.Errorf("a disk of ESXi's own: %v", err)
	}
	undo()
}
