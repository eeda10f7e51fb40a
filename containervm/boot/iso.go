package boot

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

const (
	isoBlock = 2048
	// Where Debian's packages isolinux and syslinux-common put the boot loader.
	debianISOLINUX = "/usr/lib/ISOLINUX/isolinux.bin"
	debianLDLINUX  = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
)

// isoEpoch is the time of everything on an ISO.
var isoEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// WriteISO makes a file at path that BIOSes boot from CD: ISO 9660 with an El Torito
// entry for ISOLINUX, which starts the medium's kernel. The file appears when it is whole.
func WriteISO(path string, m *Medium, o Options) (err error) {
	o.findLoader()
	tree, err := os.MkdirTemp(filepath.Dir(path), ".iso-")
	if err != nil {
		return fmt.Errorf("write ISO: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
	tmp := filepath.Join(tree, "iso")
	if err := os.Mkdir(filepath.Join(tree, "work"), 0755); err != nil {
		return err
	}
	if err := layISO(filepath.Join(tree, "work"), tmp, m, o); err != nil {
		return fmt.Errorf("write ISO: %w", err)
	}
	return os.Rename(tmp, path)
}

// findLoader names the boot loader's files where nothing does.
func (o *Options) findLoader() {
	o.ISOLINUX, o.LDLINUX = cmp.Or(o.ISOLINUX, debianISOLINUX), cmp.Or(o.LDLINUX, debianLDLINUX)
}

// layISO fills go-diskfs's work folder and has it make the ISO.
func layISO(work, out string, m *Medium, o Options) (err error) {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, isoBlock, work)
	if err != nil {
		return err
	}
	initrd := "/initrd"
	if m.Key != "" {
		initrd += ",/key"
	}
	config := fmt.Sprintf("DEFAULT vic\nPROMPT 0\nTIMEOUT 0\nLABEL vic\n KERNEL /vmlinuz\n APPEND initrd=%s %s\n", initrd, m.Cmdline)
	for _, x := range []struct{ name, from string }{
		{"isolinux/isolinux.bin", o.ISOLINUX}, {"isolinux/ldlinux.c32", o.LDLINUX},
		{"vmlinuz", m.Image}, {"initrd", m.Initrd}, {"key", m.Key}, {"release", m.Release},
	} {
		if x.from == "" {
			continue
		}
		if err := copyFile(filepath.Join(iso.Workspace(), x.name), x.from); err != nil {
			return loaderError(err, x.from)
		}
	}
	if err := os.WriteFile(filepath.Join(iso.Workspace(), "isolinux/isolinux.cfg"), []byte(config), 0644); err != nil {
		return err
	}
	entry := &iso9660.ElToritoEntry{Platform: iso9660.BIOS, Emulation: iso9660.NoEmulation, BootFile: "isolinux/isolinux.bin", BootTable: true}
	entry.SetLoadSize(4)
	if err := iso.Finalize(iso9660.FinalizeOptions{
		VolumeIdentifier: "VIC",
		ElTorito:         &iso9660.ElTorito{BootCatalog: "isolinux/boot.cat", HideBootCatalog: true, Entries: []*iso9660.ElToritoEntry{entry}},
	}); err != nil {
		return err
	}
	if err := pinDates(f); err != nil {
		return err
	}
	return f.Sync()
}

// loaderError says what to do if it is the boot loader that is missing.
func loaderError(err error, path string) error {
	if errors.Is(err, fs.ErrNotExist) && (path == debianISOLINUX || path == debianLDLINUX) {
		return fmt.Errorf("%w: install the boot loader (on Debian: apt-get install isolinux syslinux-common) or name its files", err)
	}
	return err
}

func copyFile(to, from string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// pinDates replaces every date on the ISO, since go-diskfs takes the clock's and the work
// folder's, in the local time zone. Records as ECMA-119 8.4 and 9.1 have them.
func pinDates(f *os.File) error {
	const descriptor = 16 * isoBlock
	var pvd [isoBlock]byte
	if _, err := f.ReadAt(pvd[:], descriptor); err != nil {
		return err
	}
	for _, off := range []int{813, 830, 847, 864} { // creation, modification, expiration, effective
		copy(pvd[off:], isoEpoch.Format("20060102150405")+"00\x00")
	}
	root := pvd[156:190]
	pinDate(root)
	if _, err := f.WriteAt(pvd[:], descriptor); err != nil {
		return err
	}
	return pinDirectory(f, root, 8)
}

// pinDate sets the date of a directory record.
func pinDate(record []byte) {
	copy(record[18:25], []byte{byte(isoEpoch.Year() - 1900), byte(isoEpoch.Month()), byte(isoEpoch.Day()), 0, 0, 0, 0})
}

// pinDirectory sets the dates in the directory that the record describes and those
// below it, at most depth levels deep.
func pinDirectory(f *os.File, record []byte, depth int) error {
	if depth == 0 {
		return errors.New("directories nest too deep")
	}
	at := int64(le.Uint32(record[2:])) * isoBlock
	p := make([]byte, min(le.Uint32(record[10:]), 1<<20))
	if _, err := f.ReadAt(p, at); err != nil {
		return err
	}
	for off, k := 0, 0; off+33 < len(p); k++ {
		n := int(p[off])
		if n == 0 { // records do not cross sectors
			off = (off/isoBlock + 1) * isoBlock
			continue
		}
		if n < 34 || off+n > len(p) {
			return fmt.Errorf("directory record of %d bytes", n)
		}
		r := p[off : off+n]
		pinDate(r)
		if r[25]&2 != 0 && k >= 2 { // a directory, not "." or ".."
			if err := pinDirectory(f, r, depth-1); err != nil {
				return err
			}
		}
		off += n
	}
	_, err := f.WriteAt(p, at)
	return err
}
