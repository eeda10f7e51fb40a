package vmdk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// headLimit is how far into a descriptor QEMU looks for the CIDs and the
// parent's name: 20 sectors. What comes later it ignores, without a word.
const headLimit = 20 * SectorSize

// A Descriptor is the text that describes one disk of a chain.
//
//	# Disk DescriptorFile
//	version=1
//	encoding="UTF-8"
//	CID=6ea734ed
//	parentCID=1155cbc5
//	createType="twoGbMaxExtentSparse"
//	parentFileNameHint="base.vmdk"
//	# Extent description
//	RW 134217728 SPARSE "web-delta.vmdk"
//
//	# The Disk Data Base
//	#DDB
//
//	ddb.adapterType = "lsilogic"
//
// File names in it are only text here; a caller that joins them to a path must
// take them for hostile.
type Descriptor struct {
	Version            int    // 0 is written as 1
	Encoding           string // "" is left out
	CID                uint32 // content ID; changes whenever the content does
	ParentCID          uint32 // CID of the parent when this disk was made, or NoParent
	CreateType         string
	ParentFileNameHint string  // where the parent's descriptor is, relative to this one's folder; "" is left out
	Header             []Entry // other keys before the extent lines, in order
	Extents            []ExtentLine
	DDB                []Entry // disk data base: keys that begin with "ddb."
}

// An Entry is one key and value of a descriptor.
type Entry struct{ Key, Value string }

// An ExtentLine names one extent file and the part of the disk in it. The lines
// of a descriptor follow each other on the disk without gaps.
type ExtentLine struct {
	Access  string // RW, RDONLY or NOACCESS
	Sectors int64
	Type    string // SPARSE, FLAT, ZERO, VMFS, VMFSSPARSE, SESPARSE, ...
	File    string // "" for ZERO only
	Offset  int64  // sector of the file where the part begins; FLAT only
}

// flatTypes and sparseTypes are the extent types that this package reads, by
// what their files are; otherTypes it knows by name.
var (
	sparseTypes = []string{"SPARSE", "VMFSSPARSE"}
	flatTypes   = []string{"FLAT", "VMFS"}
	otherTypes  = []string{"ZERO", "SESPARSE", "VSANSPARSE", "VMFSRDM", "VMFSRDMP", "VMFSRAW"}
)

// NewDescriptor describes a disk without a parent, of capacity bytes, in the
// one hosted sparse extent file named extentFile.
func NewDescriptor(extentFile string, capacity int64, cid uint32) *Descriptor {
	return &Descriptor{
		Version:    1,
		Encoding:   "UTF-8",
		CID:        cid,
		ParentCID:  NoParent,
		CreateType: "twoGbMaxExtentSparse", // of those for a sparse extent in a file of its own, the one QEMU opens
		Extents:    []ExtentLine{{Access: "RW", Sectors: capacity / SectorSize, Type: "SPARSE", File: extentFile}},
		DDB: []Entry{
			{"ddb.virtualHWVersion", "8"},
			{"ddb.geometry.cylinders", strconv.FormatInt(max(1, capacity/(255*63*SectorSize)), 10)},
			{"ddb.geometry.heads", "255"},
			{"ddb.geometry.sectors", "63"},
			{"ddb.adapterType", "lsilogic"},
		},
	}
}

// Child describes a delta over d in the hosted sparse extent file extentFile.
// hint is the path of d's descriptor from the folder of the child's.
func (d *Descriptor) Child(extentFile, hint string, cid uint32) *Descriptor {
	c := NewDescriptor(extentFile, d.Capacity(), cid)
	c.ParentCID = d.CID
	c.ParentFileNameHint = hint
	c.DDB = nil // children inherit the data base
	return c
}

// CIDFor returns a content ID made from a name that is unique to the content,
// such as a digest: never 0, which vcsim and unfinished disks have, never
// NoParent, and always the same for the same name.
func CIDFor(name string) uint32 {
	for sum := sha256.Sum256([]byte(name)); ; sum = sha256.Sum256(sum[:]) {
		if cid := binary.BigEndian.Uint32(sum[:]); cid != 0 && cid != NoParent {
			return cid
		}
	}
}

// Capacity returns the size of the disk in bytes.
func (d *Descriptor) Capacity() int64 {
	var n int64
	for _, x := range d.Extents {
		n += x.Sectors * SectorSize
	}
	return n
}

// Marshal writes the descriptor in the form that QEMU and VMware agree on. It
// returns a *FormatError if a field cannot be written so that both read it back.
func (d *Descriptor) Marshal() ([]byte, error) {
	bad := func(field, format string, args ...any) ([]byte, error) {
		return nil, formatErrorf(-1, field, format, args...)
	}
	if d.CID == 0 || d.CID == NoParent {
		return bad("CID", "%08x is not a content ID", d.CID)
	}
	if d.Encoding != "" && (!isKey(d.Encoding) || strings.Contains(d.Encoding, "CID")) {
		return bad("encoding", "%q is not the name of one", d.Encoding)
	}
	if !isKey(d.CreateType) {
		return bad("createType", "%q is not one word", d.CreateType)
	}
	if !isPlain(d.ParentFileNameHint) {
		return bad("parentFileNameHint", "%q has a quote or a control character", d.ParentFileNameHint)
	}
	if (d.ParentCID == NoParent) != (d.ParentFileNameHint == "") {
		return bad("parentFileNameHint", "%q with parentCID %08x", d.ParentFileNameHint, d.ParentCID)
	}
	if len(d.Extents) == 0 {
		return bad("extent", "the disk has none")
	}

	// CID comes before parentCID and next to it, and no word before has CID in
	// it: QEMU rewrites the one in place and drops what is between. No empty
	// line stands before an extent line, or QEMU counts that extent twice.
	var b strings.Builder
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=%d\n", max(d.Version, 1))
	if d.Encoding != "" {
		fmt.Fprintf(&b, "encoding=\"%s\"\n", d.Encoding)
	}
	fmt.Fprintf(&b, "CID=%08x\nparentCID=%08x\ncreateType=\"%s\"\n", d.CID, d.ParentCID, d.CreateType)
	if d.ParentFileNameHint != "" {
		fmt.Fprintf(&b, "parentFileNameHint=\"%s\"\n", d.ParentFileNameHint)
	}
	if b.Len() > headLimit {
		return bad("parentFileNameHint", "ends after byte %d, where QEMU stops looking", headLimit)
	}
	for _, e := range d.Header {
		if !isKey(e.Key) || isKnown(e.Key) || strings.HasPrefix(e.Key, "ddb.") || !isPlain(e.Value) {
			return bad("header entry", "%q = %q", e.Key, e.Value)
		}
		fmt.Fprintf(&b, "%s=\"%s\"\n", e.Key, e.Value)
	}
	b.WriteString("# Extent description\n")
	for _, x := range d.Extents {
		line := x.marshal()
		if y, err := parseExtentLine(line, -1); err != nil {
			return nil, err
		} else if y != x {
			return bad("extent", "%+v cannot be written", x)
		}
		b.WriteString(line + "\n")
	}
	b.WriteString("\n# The Disk Data Base\n#DDB\n\n")
	for _, e := range d.DDB {
		if !isKey(e.Key) || !strings.HasPrefix(e.Key, "ddb.") || !isPlain(e.Value) {
			return bad("disk data base entry", "%q = %q", e.Key, e.Value)
		}
		if e.Key == "ddb.longContentID" && len(e.Value) == 32 {
			// Its last 8 digits are the CID; QEMU changes only that one.
			e.Value = fmt.Sprintf("%s%08x", e.Value[:24], d.CID)
		}
		fmt.Fprintf(&b, "%s = \"%s\"\n", e.Key, e.Value)
	}
	if b.Len() > maxDescriptor {
		return bad("descriptor", "%d bytes, the limit is %d", b.Len(), maxDescriptor)
	}
	return []byte(b.String()), nil
}

func (x ExtentLine) marshal() string {
	s := fmt.Sprintf("%s %d %s", x.Access, x.Sectors, x.Type)
	if x.File != "" {
		s += ` "` + x.File + `"`
	}
	if x.Type == "FLAT" {
		s += fmt.Sprintf(" %d", x.Offset)
	}
	return s
}

// ParseDescriptor reads a descriptor, as written by this package, by VMware or
// by QEMU, up to the first NUL. It returns a *FormatError for anything else,
// also for text that some reader would take for another disk than another
// reader does: a key given twice, or a parent's name where QEMU does not look.
func ParseDescriptor(text []byte) (*Descriptor, error) {
	if len(text) > maxDescriptor {
		return nil, formatErrorf(-1, "descriptor", "%d bytes, the limit is %d", len(text), maxDescriptor)
	}
	rest, _, _ := strings.Cut(string(text), "\x00")
	p := descriptorParser{d: &Descriptor{ParentCID: NoParent}}
	first := true
	for off := 0; rest != ""; {
		line, tail, _ := strings.Cut(rest, "\n")
		if first && !strings.EqualFold(strings.TrimRight(line, " \t\r"), "# Disk DescriptorFile") {
			return nil, formatErrorf(0, "descriptor", "does not begin with %q", "# Disk DescriptorFile")
		}
		first = false
		p.off, p.end = int64(off), int64(off+len(line))
		off += len(rest) - len(tail)
		rest = tail
		if err := p.line(strings.Trim(line, " \t\r")); err != nil {
			return nil, err
		}
	}
	return p.finish(first)
}

type descriptorParser struct {
	d        *Descriptor
	seen     [len(knownKeys)]bool
	off, end int64 // the line's first byte, and the one after its last
	sectors  int64 // of the extent lines so far
}

// knownKeys are those that have a field of their own, the required ones first.
var knownKeys = [...]string{"version", "CID", "createType", "parentCID", "encoding", "parentFileNameHint"}

const requiredKeys = 3

func isKnown(key string) bool {
	return slices.Contains(knownKeys[:], key)
}

func (p *descriptorParser) line(s string) error {
	if s == "" || s[0] == '#' {
		return nil
	}
	switch word, _, _ := strings.Cut(s, " "); word {
	case "RW", "RDONLY", "NOACCESS":
		x, err := parseExtentLine(s, p.off)
		if err != nil {
			return err
		}
		if p.sectors += x.Sectors; p.sectors > 1<<53 {
			return formatErrorf(p.off, "extent", "the disk has %d sectors", p.sectors)
		}
		p.d.Extents = append(p.d.Extents, x)
		return nil
	}
	key, value, ok := strings.Cut(s, "=")
	key, value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
	if !ok || !isKey(key) {
		return formatErrorf(p.off, "descriptor", "neither a comment, an extent nor a key and value: %.40q", s)
	}
	if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	if !isPlain(value) {
		return formatErrorf(p.off, key, "quoted wrongly or with a control character: %.40q", value)
	}
	return p.entry(key, value)
}

func (p *descriptorParser) entry(key, value string) error {
	d := p.d
	for i, k := range knownKeys {
		if k != key {
			continue
		}
		if p.seen[i] {
			return formatErrorf(p.off, key, "given twice")
		}
		if p.end > headLimit {
			return formatErrorf(p.off, key, "ends after byte %d, where QEMU stops looking", headLimit)
		}
		p.seen[i] = true
	}
	var err error
	switch key {
	case "version":
		d.Version, err = strconv.Atoi(value)
		if err != nil || d.Version < 1 || d.Version > 4 {
			return formatErrorf(p.off, key, "%.40q is not 1 to 4", value)
		}
	case "CID":
		d.CID, err = parseCID(value)
	case "parentCID":
		d.ParentCID, err = parseCID(value)
	case "encoding":
		d.Encoding = value
	case "createType":
		d.CreateType = value
	case "parentFileNameHint":
		d.ParentFileNameHint = value
	default:
		if strings.HasPrefix(key, "ddb.") {
			d.DDB = append(d.DDB, Entry{key, value})
		} else {
			d.Header = append(d.Header, Entry{key, value})
		}
	}
	if err != nil {
		return formatErrorf(p.off, key, "%.40q is not 1 to 8 hexadecimal digits", value)
	}
	return nil
}

func (p *descriptorParser) finish(empty bool) (*Descriptor, error) {
	if empty {
		return nil, formatErrorf(0, "descriptor", "is empty")
	}
	for i, k := range knownKeys[:requiredKeys] {
		if !p.seen[i] {
			return nil, formatErrorf(-1, k, "is missing")
		}
	}
	if len(p.d.Extents) == 0 {
		return nil, formatErrorf(-1, "extent", "the disk has none")
	}
	return p.d, nil
}

// parseCID accepts what QEMU writes: %x, without leading zeros.
func parseCID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if len(s) > 8 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

// parseExtentLine reads: access, sectors, type, and then, except for ZERO, a
// quoted file name and for FLAT an optional offset.
func parseExtentLine(s string, off int64) (ExtentLine, error) {
	bad := func(msg string) (ExtentLine, error) {
		return ExtentLine{}, formatErrorf(off, "extent", "%s: %.80q", msg, s)
	}
	var x ExtentLine
	var sectors string
	rest := s
	for _, word := range []*string{&x.Access, &sectors, &x.Type} {
		*word, rest, _ = strings.Cut(strings.TrimLeft(rest, " \t"), " ")
	}
	n, err := strconv.ParseUint(sectors, 10, 53)
	if err != nil || n == 0 {
		return bad("its size is not a number of sectors")
	}
	x.Sectors = int64(n)
	if x.Access != "RW" && x.Access != "RDONLY" && x.Access != "NOACCESS" {
		return bad("unknown access")
	}
	rest = strings.TrimLeft(rest, " \t")
	if x.Type == "ZERO" {
		if rest != "" {
			return bad("a ZERO extent has no file")
		}
		return x, nil
	}
	if !slices.Contains(sparseTypes, x.Type) && !slices.Contains(flatTypes, x.Type) && !slices.Contains(otherTypes, x.Type) {
		return bad("unknown type")
	}
	rest, open := strings.CutPrefix(rest, `"`)
	var closed bool
	x.File, rest, closed = strings.Cut(rest, `"`)
	if !open || !closed || x.File == "" || !isPlain(x.File) {
		return bad("no quoted file name")
	}
	if rest = strings.Trim(rest, " \t"); rest != "" {
		n, err := strconv.ParseUint(rest, 10, 53)
		if err != nil || x.Type != "FLAT" && n != 0 {
			return bad("stray words after the file name")
		}
		x.Offset = int64(n)
	}
	return x, nil
}

// isPlain reports whether s can stand between quotes on one line.
func isPlain(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == 0x7f }) < 0
}

func isKey(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}) < 0
}
