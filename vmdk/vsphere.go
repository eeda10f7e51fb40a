package vmdk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxVSphereDepth is how many disks a chain has at most. VMware supports 32
// snapshots; a copy or a backup adds one for a while.
const maxVSphereDepth = 30

// NewFlatDescriptor describes a disk without a parent, of capacity bytes, as
// vSphere has the base disk of a chain: thin, in the raw file extentFile, which
// is called NAME-flat.vmdk.
func NewFlatDescriptor(extentFile string, capacity int64, cid uint32) *Descriptor {
	d := NewDescriptor(extentFile, capacity, cid)
	d.CreateType = "vmfs"
	d.Extents[0].Type = "VMFS"
	id := sha256.Sum256(fmt.Appendf(nil, "%s %08x", extentFile, cid))
	d.DDB = append(d.DDB,
		Entry{"ddb.longContentID", longContentID(id[:], cid)},
		Entry{"ddb.thinProvisioned", "1"},
		// VMware's prefix, then digits that tell disks apart.
		Entry{"ddb.uuid", fmt.Sprintf("60 00 C2 9%x % x-% x", id[12]>>4, id[13:17], id[17:25])})
	return d
}

// COWDChild describes a delta over d, for vSphere, in the vmfsSparse (COWD)
// extent file extentFile, which is called NAME-delta.vmdk. hint is the path of
// d's descriptor from the folder of the child's.
func (d *Descriptor) COWDChild(extentFile, hint string, cid uint32) *Descriptor {
	c := d.Child(extentFile, hint, cid)
	c.CreateType = "vmfsSparse"
	c.Header = []Entry{{"isNativeSnapshot", "no"}}
	c.Extents[0].Type = "VMFSSPARSE"
	id := sha256.Sum256(fmt.Appendf(nil, "%s %08x over %08x", extentFile, cid, d.CID))
	c.DDB = []Entry{{"ddb.longContentID", longContentID(id[:], cid)}}
	return c
}

// longContentID is 32 digits, of which the last 8 are the CID.
func longContentID(id []byte, cid uint32) string { return fmt.Sprintf("%x%08x", id[:12], cid) }

// CheckVSphere says what ESXi would refuse of a chain, the top disk first, if
// its files were on a datastore: nil, or an error that joins a *FormatError for
// each reason. Of a link without Extents it judges the descriptor only. What is
// inside the extent files is Extent.Check's matter.
func CheckVSphere(links []Link) error {
	var errs []error
	bad := func(i int, field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("disk %d of chain: %w", i, formatErrorf(-1, field, format, args...)))
	}
	if n := len(links); n > maxVSphereDepth {
		errs = append(errs, formatErrorf(-1, "chain", "%d disks; vSphere supports 32 snapshots, %d disks leave room for its own", n, maxVSphereDepth))
	}
	var child *Descriptor
	sparse := "" // createType of the deltas
	for i, l := range links {
		d := l.Descriptor
		if d == nil {
			bad(i, "descriptor", "is not a file of its own")
			return errors.Join(errs...)
		}
		if child != nil && child.ParentCID != d.CID {
			bad(i, "CID", "content ID mismatch (%08x != %08x): the parent virtual disk has been modified since the child was created", child.ParentCID, d.CID)
		}
		if child != nil && child.Capacity() != d.Capacity() {
			bad(i, "capacity", "the capacity of each link is different: %d sectors, of the child %d", d.Capacity()/SectorSize, child.Capacity()/SectorSize)
		}
		base := i == len(links)-1
		if (d.ParentCID == NoParent) != base {
			bad(i, "parentCID", "%08x in disk %d of %d", d.ParentCID, i+1, len(links))
		}
		if msg := vsphereType(d, base); msg != "" {
			bad(i, "createType", "%s", msg)
		} else if !base && sparse != "" && d.CreateType != sparse {
			bad(i, "createType", "%s below %s: they cannot be mixed in one hierarchy", d.CreateType, sparse)
		} else if !base {
			sparse = d.CreateType
		}
		if d.CreateType == "vmfsSparse" && d.Capacity()/SectorSize >= maxSectors {
			bad(i, "capacity", "%d sectors; vmfsSparse is for disks below 2 TiB", d.Capacity()/SectorSize)
		}
		for _, e := range d.DDB {
			if e.Key == "ddb.longContentID" && !isLongContentID(e.Value, d.CID) {
				bad(i, e.Key, "%q does not end with the CID, %08x", e.Value, d.CID)
			}
		}
		if base && !d.has("ddb.adapterType") {
			bad(i, "ddb.adapterType", "is missing in the base disk")
		}
		if n := len(l.Extents); n == 1 && len(d.Extents) == 1 && l.Extents[0].Capacity() != d.Capacity() {
			bad(i, "capacity", "%d sectors in %q, the descriptor says %d", l.Extents[0].Capacity()/SectorSize, d.Extents[0].File, d.Capacity()/SectorSize)
		}
		child = d
	}
	return errors.Join(errs...)
}

// vsphereType says why ESXi does not open a disk of this type; "" if it does.
func vsphereType(d *Descriptor, base bool) string {
	types := map[string]string{"vmfsSparse": "VMFSSPARSE", "seSparse": "SESPARSE", "vsanSparse": "VSANSPARSE"}
	if base {
		types = map[string]string{"vmfs": "VMFS"}
	}
	want, ok := types[d.CreateType]
	switch {
	case !ok && base:
		return fmt.Sprintf("unsupported or invalid disk type %s: a base disk is vmfs; ensure that the disk has been imported", d.CreateType)
	case !ok:
		return fmt.Sprintf("unsupported or invalid disk type %s: a delta is vmfsSparse, seSparse or vsanSparse", d.CreateType)
	case len(d.Extents) != 1:
		return fmt.Sprintf("%s with %d extents, it has one", d.CreateType, len(d.Extents))
	case d.Extents[0].Type != want:
		return fmt.Sprintf("%s with an extent of type %s, want %s", d.CreateType, d.Extents[0].Type, want)
	}
	return ""
}

func isLongContentID(s string, cid uint32) bool {
	if len(s) != 32 || strings.Trim(strings.ToLower(s), "0123456789abcdef") != "" {
		return false
	}
	n, err := strconv.ParseUint(s[24:], 16, 32)
	return err == nil && uint32(n) == cid
}

func (d *Descriptor) has(key string) bool {
	for _, e := range d.DDB {
		if e.Key == key {
			return true
		}
	}
	return false
}
