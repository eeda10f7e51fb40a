// Package diskfs reads and writes the ext4 file system inside a layer's disk, in user space.
//
// A container image is a stack of tar files (OCI changesets). Each becomes the
// difference between two ext4 file systems: the one of the layer below, and the
// same one with the changeset applied. The work is split so that the bulk of it
// depends on nothing:
//
//	stage 1  ReadTar    tar  ─► file data, appended block by block to a stream
//	                         ─► a Changeset: names, owners, modes, times, xattrs, and for
//	                            each file the stream blocks that hold its data
//	stage 2  FS.Apply   the file system below + Changeset ─► a Delta: where on the disk the
//	                    stream's clusters belong, and the metadata blocks that change
//
// Stage 1 of all layers may run at once; stage 2 runs in layer order and touches
// metadata only. It works because ext4 covers file data by no checksum and no
// block number: data can be on the datastore before anybody knows its address.
//
// Units. A block is 4 KiB (ext4's), a cluster is 16 blocks, 64 KiB: the unit in
// which disk formats map addresses to file offsets. The stream is placed in whole
// clusters, so a block's offset in its cluster is the same in the stream and on
// the disk. Clusters are handed out in ascending order and never twice along a
// chain of layers, so an unmapped part of a fresh cluster reads as zeros.
//
// The disk, in blocks, for the default capacity of 64 GiB (512 block groups):
//
//	0            superblock (at byte 1024)                     ┐
//	1..8         group descriptors, 64 bytes each              │ cluster 0: all a small
//	9, 10        inode bitmaps of groups 0 and 1               │ layer changes besides
//	11..15       block bitmaps of the first groups with data   ┘ inode tables
//	16..1032     all other bitmaps: block bitmaps, then inode bitmaps
//	1033..5128   journal, 16 MiB, empty
//	5129..       inode tables, 256 blocks a group
//	136224..     data: directories, file data, extent blocks, xattr blocks, symlinks
//
// Blocks at the start of groups 1, 3, 5, 7 and their powers are reserved for backup
// superblocks and never written: e2fsck and the kernel need the room, not the copies.
// Inodes of directories come from groups 0, 16, 32…, others from the rest: changing
// many files then dirties few clusters of directory inodes.
//
// Everything here is a pure function of its input: no clock, no randomness, no map
// order. The same layers give the same bytes.
//
// The format is that of Linux's Documentation/filesystems/ext4, and where that is
// silent, of e2fsprogs lib/ext2fs. Features: ext_attr dir_index has_journal; filetype
// extents 64bit flex_bg; sparse_super large_file huge_file dir_nlink extra_isize
// metadata_csum. Any Linux from 3.18 mounts it.
package diskfs

import (
	"errors"
	"fmt"
)

const (
	// BlockSize is the file system's block size in bytes.
	BlockSize = 4096
	// ClusterSize is the number of bytes in which the stream is placed on the disk.
	ClusterSize = 64 << 10
	// DefaultCapacity is the size in bytes of a disk whose options name none.
	DefaultCapacity = 64 << 30

	clusterBlocks  = ClusterSize / BlockSize
	blocksPerGroup = 8 * BlockSize
	inodesPerGroup = 4096
	inodeSize      = 256
	inodesPerBlock = BlockSize / inodeSize
	tableBlocks    = inodesPerGroup / inodesPerBlock // of one group's inode table
	groupDescSize  = 64
	descsPerBlock  = BlockSize / groupDescSize
	rootInode      = 2
	journalInode   = 8
	firstInode     = 11 // 1..10 are reserved
	maxNameLen     = 255
	maxLinks       = 65000
)

// A FormatError reports a file system or a tar that breaks its format.
type FormatError struct {
	Off   int64  // byte offset in the disk or tar, -1 if there is none to give
	Field string // what was read: "superblock", "inode 12", "directory 2", …
	Msg   string // what is wrong with it
}

func (e *FormatError) Error() string {
	if e.Off < 0 {
		return fmt.Sprintf("diskfs: %s: %s", e.Field, e.Msg)
	}
	return fmt.Sprintf("diskfs: %s at byte %d: %s", e.Field, e.Off, e.Msg)
}

// ErrNoSpace is wrapped by the error of an Apply that needs more clusters or inodes
// than the disk has left. The layers below are intact.
var ErrNoSpace = errors.New("diskfs: no space left on the disk")

func badInode(ino uint32, format string, args ...any) error {
	return &FormatError{Off: -1, Field: fmt.Sprintf("inode %d", ino), Msg: fmt.Sprintf(format, args...)}
}
