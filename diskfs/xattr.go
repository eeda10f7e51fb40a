package diskfs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Extended attributes stand in the inode's last 96 bytes, or, if they do not fit, in
// one block that several inodes may share. Layout as struct ext4_xattr_ibody_header,
// ext4_xattr_header and ext4_xattr_entry:
//
//	inode   0  magic u32                    block   0  magic, refcount, blocks (1), hash,
//	        4  entries, then 4 zero bytes              checksum, 12 zero bytes
//	       96  values, growing downwards           32  entries, then 4 zero bytes
//	                                             4096  values, growing downwards
//	entry   0  name length u8, prefix u8, value offset u16, 0 u32, value size u32, hash u32
//	       16  name without its prefix, padded to 4
//
// Value offsets count from the first entry in an inode, from the block's start in a block.
const (
	xattrMagic       = 0xEA020000
	xattrEntry       = 16
	xattrBlockHeader = 32
	xattrInodeRoom   = inodeSize - inoXattr - 4
	xattrBlockRoom   = BlockSize - xattrBlockHeader
	maxXattrRefs     = 1024

	prefixUser       = 1
	prefixACLAccess  = 2
	prefixACLDefault = 3
	prefixTrusted    = 4
	prefixSecurity   = 6
	prefixSystem     = 7
)

// An Xattr is one extended attribute under its full name: "security.capability". ACLs
// have the form in which the kernel gives them to getxattr(2).
type Xattr struct {
	Name  string
	Value []byte
}

var xattrPrefixes = []struct {
	prefix byte
	name   string
}{
	{prefixACLAccess, "system.posix_acl_access"},
	{prefixACLDefault, "system.posix_acl_default"},
	{prefixUser, "user."},
	{prefixTrusted, "trusted."},
	{prefixSecurity, "security."},
	{prefixSystem, "system."},
}

// diskXattr is an attribute in its on-disk form.
type diskXattr struct {
	prefix byte
	name   string
	value  []byte
}

func (x diskXattr) room() int { return xattrEntry + pad4(len(x.name)) + pad4(len(x.value)) }

func pad4(n int) int { return (n + 3) &^ 3 }

// toDisk translates attributes into their on-disk form, in the order a block wants.
func toDisk(list []Xattr) ([]diskXattr, error) {
	var out []diskXattr
	for _, x := range list {
		d := diskXattr{value: x.Value}
		for _, p := range xattrPrefixes {
			if rest, ok := strings.CutPrefix(x.Name, p.name); ok {
				d.prefix, d.name = p.prefix, rest
				break
			}
		}
		acl := d.prefix == prefixACLAccess || d.prefix == prefixACLDefault
		switch {
		case d.prefix == 0, acl && d.name != "", !acl && d.name == "", len(d.name) > 255:
			return nil, fmt.Errorf("extended attribute %q: no such name in ext4", x.Name)
		case acl:
			v, err := aclToDisk(x.Value)
			if err != nil {
				return nil, fmt.Errorf("extended attribute %q: %w", x.Name, err)
			}
			d.value = v
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b diskXattr) int {
		return cmp.Or(cmp.Compare(a.prefix, b.prefix), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	return out, nil
}

// encodeXattrs splits the attributes over the inode's area (96 bytes, nil if empty)
// and a block (nil if not needed; its refcount is 1 and its checksum still to come).
func encodeXattrs(list []Xattr) (inode, block []byte, err error) {
	all, err := toDisk(list)
	if err != nil || len(all) == 0 {
		return nil, nil, err
	}
	room := func(xs []diskXattr) int {
		n := 4
		for _, x := range xs {
			n += x.room()
		}
		return n
	}
	if room(all) <= xattrInodeRoom {
		return encodeInodeXattrs(all), nil, nil
	}
	var in, blk []diskXattr
	if room(all) <= xattrBlockRoom {
		blk = all
	} else {
		for _, x := range all { // what fits into the inode leaves room in the block
			if room(in)+x.room() <= xattrInodeRoom {
				in = append(in, x)
			} else {
				blk = append(blk, x)
			}
		}
	}
	if room(blk) > xattrBlockRoom {
		return nil, nil, fmt.Errorf("extended attributes take %d bytes, ext4 has room for %d", room(all), xattrInodeRoom+xattrBlockRoom)
	}
	if len(in) > 0 {
		inode = encodeInodeXattrs(in)
	}
	return inode, encodeBlockXattrs(blk), nil
}

func encodeInodeXattrs(list []diskXattr) []byte {
	p := make([]byte, 4+xattrInodeRoom)
	le.PutUint32(p, xattrMagic)
	putXattrs(p[4:], p[4:], list, false)
	return p
}

func encodeBlockXattrs(list []diskXattr) []byte {
	p := make([]byte, BlockSize)
	le.PutUint32(p[0:], xattrMagic)
	le.PutUint32(p[4:], 1)
	le.PutUint32(p[8:], 1)
	le.PutUint32(p[12:], putXattrs(p[xattrBlockHeader:], p, list, true))
	return p
}

// putXattrs writes the entries from the start of at and the values down from its end.
// Offsets count from base. It returns the hash over all entries.
func putXattrs(at, base []byte, list []diskXattr, hash bool) uint32 {
	end, shift := len(at), len(base)-len(at)
	var all uint32
	for _, x := range list {
		end -= pad4(len(x.value))
		copy(at[end:], x.value)
		at[0], at[1] = byte(len(x.name)), x.prefix
		if len(x.value) > 0 {
			le.PutUint16(at[2:], uint16(end+shift))
		}
		le.PutUint32(at[8:], uint32(len(x.value)))
		if hash {
			h := xattrHash(x.name, x.value)
			le.PutUint32(at[12:], h)
			all = all<<16 ^ all>>16 ^ h
		}
		copy(at[xattrEntry:], x.name)
		n := xattrEntry + pad4(len(x.name))
		at, end, shift = at[n:], end-n, shift+n
	}
	return all
}

func xattrHash(name string, value []byte) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for len(value) > 0 {
		var w [4]byte
		n := copy(w[:], value)
		value = value[n:]
		h = h<<16 ^ h>>16 ^ le.Uint32(w[:])
	}
	return h
}

// xattrs reads all attributes of an inode, in the order of the disk.
func (f *FS) xattrs(ino uint32, in rawInode) ([]Xattr, error) {
	var list []Xattr
	if extra := int(le.Uint16(in[inoExtraSize:])); extra >= extraSize && 0x80+extra+8 <= inodeSize {
		area := in[0x80+extra:]
		if le.Uint32(area) == xattrMagic {
			var err error
			if list, err = parseXattrs(ino, area[4:], area[4:], list); err != nil {
				return nil, err
			}
		}
	}
	at := in.xattrBlock()
	if at == 0 {
		return list, nil
	}
	b, err := f.xattrBlockAt(ino, at)
	if err != nil {
		return nil, err
	}
	return parseXattrs(ino, b.data[xattrBlockHeader:], b.data[:], list)
}

func (f *FS) xattrBlockAt(ino uint32, at int64) (*block, error) {
	b, err := f.load(at)
	if err != nil {
		return nil, fmt.Errorf("extended attributes of inode %d: %w", ino, err)
	}
	if le.Uint32(b.data[:]) != xattrMagic || le.Uint32(b.data[8:]) != 1 {
		return nil, badInode(ino, "block %d holds no extended attributes", at)
	}
	if f.sb.roCompat&roMetadataCsum != 0 && !b.dirty && xattrChecksum(f.seed, at, b.data[:]) != le.Uint32(b.data[16:]) {
		return nil, badInode(ino, "checksum mismatch in extended attribute block %d", at)
	}
	return b, nil
}

// parseXattrs appends the attributes whose entries start at p to list.
func parseXattrs(ino uint32, p, base []byte, list []Xattr) ([]Xattr, error) {
	for {
		if len(p) < 4 {
			return nil, badInode(ino, "extended attributes without an end")
		}
		if le.Uint32(p) == 0 {
			return list, nil
		}
		nameLen := int(p[0])
		if len(p) < xattrEntry+pad4(nameLen)+4 {
			return nil, badInode(ino, "extended attribute name beyond its area")
		}
		off, inum, size := int(le.Uint16(p[2:])), le.Uint32(p[4:]), le.Uint32(p[8:])
		if inum != 0 {
			return nil, badInode(ino, "extended attributes in inodes of their own are not supported")
		}
		if size > BlockSize || size > 0 && off+int(size) > len(base) {
			return nil, badInode(ino, "extended attribute value beyond its area")
		}
		var value []byte
		if size > 0 {
			value = bytes.Clone(base[off : off+int(size)])
		}
		prefix := p[1]
		i := slices.IndexFunc(xattrPrefixes, func(x struct {
			prefix byte
			name   string
		}) bool {
			return x.prefix == prefix
		})
		if i < 0 {
			return nil, badInode(ino, "extended attribute with name prefix %d", prefix)
		}
		if prefix == prefixACLAccess || prefix == prefixACLDefault {
			v, err := aclFromDisk(value)
			if err != nil {
				return nil, badInode(ino, "ACL: %v", err)
			}
			value = v
		}
		list = append(list, Xattr{xattrPrefixes[i].name + string(p[xattrEntry:xattrEntry+nameLen]), value})
		p = p[xattrEntry+pad4(nameLen):]
	}
}
