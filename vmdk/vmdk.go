// Package vmdk writes and reads VMDK disks and chains of them: hosted sparse
// ones, which QEMU, Workstation and Fusion run, and what makes their content
// vSphere's.
//
// A disk is a descriptor, a short text, and the extent files that it names. A
// delta holds only the grains in which it differs from its parent, another
// disk; a chain of them, seen through Disk, is one block device. The formats
// are those of VMware's "Virtual Disk Format 1.1"; where that document is
// silent, what QEMU's block/vmdk.c accepts decides.
//
// The package reads io.ReaderAt and writes io.WriterAt. It opens no file,
// follows no name that a descriptor holds, logs nothing and syncs nothing:
// names, locks and durability belong to the caller. Only WriteStream starts
// goroutines, to compress, and waits for them.
//
// # Extent file
//
// All numbers are little-endian. A sector is 512 bytes, a grain a power of two
// of sectors (64 KiB in what this package writes).
//
//	 off size  header, sector 0
//	0x00    4  magic "KDMV"
//	0x04    4  version: 1; 2 with zeroed grains; 3 compressed
//	0x08    4  flags: 1 newline check valid, 2 redundant grain directory,
//	           4 entry 1 is a zeroed grain, 0x10000 compressed, 0x20000 markers
//	0x0c    8  capacity of the disk (or of this part of it), sectors
//	0x14    8  grain size, sectors
//	0x1c    8  embedded descriptor, first sector; 0 is none
//	0x24    8  embedded descriptor, sectors
//	0x2c    4  entries of a grain table: 512
//	0x30    8  redundant grain directory, first sector
//	0x38    8  grain directory, first sector; all ones: see the footer
//	0x40    8  overhead: first sector that may hold a grain
//	0x48    1  unclean shutdown
//	0x49    4  newline check: 0a 20 0d 0a
//	0x4d    2  compression: 0 none, 1 deflate
//	0x4f  433  zero
//
// A grain directory has one 4-byte entry for each 512 grains (32 MiB) of the
// disk: the first sector of a grain table, or 0 if none of them is there. A
// grain table has 512 4-byte entries: the first sector of a grain; 0 if the
// grain is not there and the parent shows through; 1, given flag 4, if it reads
// as zeros. The redundant directory has tables of its own with equal entries.
//
// A disk meant to be written, from CreateExtent, has every grain table: QEMU
// writes over the header when it meets a directory entry of 0 in a disk that
// it may write. Grains follow the tables in the order of their first write.
//
//	| header | RGD | its tables | GD | its tables | pad | grains ...
//
// A finished layer, from LayerWriter, is never written again and has tables
// only where it has grains. Its grains come first, since they are laid down
// before it is known where on the disk they belong; the header comes last, so
// a file that was not finished is not a disk.
//
//	| header | pad to 64 KiB | grains ... | RGD | its tables | GD | its tables |
//
// # Stream-optimized extent file
//
// Each table entry points at a grain marker: the grain's first disk sector (8
// bytes), the number of compressed bytes (4), and those bytes as a zlib stream,
// padded to a sector. The directory may come after the grains; then the last
// three sectors are a footer marker, a copy of the header with the directory's
// place, and an end marker of zeros. Other metadata has a sector before it, a
// marker: how many sectors it has (8 bytes), 0 (4), and what it is (4): 1 a grain
// table, 2 the directory, 3 the footer. WriteStream writes this form, front to back:
//
//	| header | descriptor | pad to 64 KiB | grains, table | grains, table ... | GD | footer |
//
// # COWD extent file
//
// ESXi's deltas on VMFS5 and NFS, createType vmfsSparse. There is no redundant
// directory, no zeroed grain and no embedded descriptor, and all numbers have
// 32 bits: disk and file are smaller than 2 TiB.
//
//	  off size  header, sectors 0 to 3
//	0x000    4  magic "COWD"
//	0x004    4  version: 1
//	0x008    4  flags: 3
//	0x00c    4  capacity, sectors
//	0x010    4  grain size, sectors: 1 where ESXi or this package writes
//	0x014    4  grain directory, first sector: 4
//	0x018    4  entries of the grain directory
//	0x01c    4  freeSector: where the next grain or table goes
//	0x020 1616  parent's file name, generation, name, description: empty
//	0x670    4  unclean shutdown
//	0x674  396  zero
//
// Directory and tables are as in a hosted sparse extent, but a table has 4096
// entries: with grains of a sector it covers 2 MiB. A COWD, the type, is such a
// file, not written but projected from a chain, with tables only where it has
// grains:
//
//	| header | GD | tables | grains ... | a sector of zeros |
//
// QEMU reads COWD, a grain at a time. Where it writes one it leaves freeSector
// as it was, so ESXi would write over that: Check finds it, and Disk.WriteAt
// does not write COWD.
//
// # vSphere
//
// What a layer or a whole chain holds has several forms, each a projection of
// its grain tables. COWD, beside a descriptor from COWDChild, is for where ESXi
// takes such files; Blocks for writing to a disk that ESXi made, where nobody
// else knows the format; WriteStream for an NFC lease; and a disk as it is read,
// beside NewFlatDescriptor, for a raw base. CheckVSphere says what of a chain
// ESXi would refuse.
//
// # Chain
//
// Each descriptor has a content ID, CID, and that of its parent at the time the
// child was made. QEMU compares them late, when a read first passes through to
// the parent, and ESXi refuses disks of unequal capacity; OpenDisk checks both
// before it returns.
//
// # Locks
//
// Extent.mu guards the list of cached grain tables and nothing else; it is
// never held during a read of the file.
package vmdk

import (
	"fmt"
	"io"
)

const (
	// SectorSize is the unit of every offset in a VMDK, in bytes.
	SectorSize = 512
	// DefaultGrainSize is the grain size, in bytes, of every extent file that
	// this package writes.
	DefaultGrainSize = 64 << 10
	// NoParent is the ParentCID of a disk that has no parent.
	NoParent uint32 = 0xffffffff
)

// File is where an extent file is written. *os.File is one. A File that can
// give storage back may also have
//
//	PunchHole(off, n int64) error
//
// after which those n bytes read as zeros; one that turns out to be unable to
// returns an error that is errors.ErrUnsupported.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// A FormatError reports bytes that are not a valid VMDK, or disks that do not
// form a chain.
type FormatError struct {
	Off   int64  // byte in the extent file or descriptor; -1 if the fault has no one place
	Field string // what is wrong, in the words of the specification
	Msg   string // how it is wrong
}

func (e *FormatError) Error() string {
	if e.Off < 0 {
		return fmt.Sprintf("vmdk: %s: %s", e.Field, e.Msg)
	}
	return fmt.Sprintf("vmdk: %s at byte %d: %s", e.Field, e.Off, e.Msg)
}

func formatErrorf(off int64, field, format string, args ...any) *FormatError {
	return &FormatError{Off: off, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// readFull reads exactly len(p) bytes. The end of the file is an unexpected
// one: callers have compared with its size before.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
