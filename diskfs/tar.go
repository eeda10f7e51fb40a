package diskfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
)

const (
	// tarChunk is how much file data is read, searched for zeros and written at once.
	tarChunk = 256 << 10
	// holeBlocks is the length from which zeros in the middle of a file become a hole:
	// a shorter one would cost more in file extents than it saves in blocks.
	holeBlocks = clusterBlocks

	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
	// pseudoLinks is the directory in which aufs kept files that have several names: a
	// layer saved on it has the data there, and hard links to that.
	pseudoLinks = ".wh..wh.plnk/"

	paxXattr = "SCHILY.xattr."
)

var zeroBlock [BlockSize]byte

// ReadTar takes a layer's uncompressed tar apart. File data is appended to data in tar
// order, in whole blocks, the last one of a file padded with zeros; blocks of zeros at
// a file's start and end, and long runs of them inside, are left out. r is read to its
// end, past the tar's own: whoever hashes it sees every byte.
//
// Names are cleaned as OCI changesets want it: they never leave the root. Names of
// whiteouts (image-spec layer.md) are recorded as such whatever their type. A broken
// tar gives a *FormatError or the tar package's error; what data holds is then useless.
//
// skeleton, unless it is nil, is written the first part of a recipe to rebuild the tar.
func ReadTar(r io.Reader, data, skeleton io.Writer, lim Limits) (*Changeset, error) {
	in := &tarInput{r: r, header: true}
	in.skeleton.out = skeleton
	t := tarReader{
		tr: tar.NewReader(in), in: in, out: data, lim: lim.orDefault(), buf: make([]byte, tarChunk),
		cs: &Changeset{dirs: make(map[string]struct{})},
	}
	for {
		h, err := t.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read tar after %d entries: %w", t.seen, err)
		}
		if t.seen++; t.seen > t.lim.Entries {
			return nil, fmt.Errorf("tar has more than %d entries", t.lim.Entries)
		}
		if err := t.entry(h); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", h.Name, err)
		}
	}
	t.dropPseudo()
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, fmt.Errorf("read tar to its end: %w", err)
	}
	if in.skeleton.data(0); in.skeleton.err != nil {
		return nil, fmt.Errorf("write skeleton: %w", in.skeleton.err)
	}
	return t.cs, nil
}

// A tarInput counts the bytes read, and passes on those that are not data of files.
type tarInput struct {
	r        io.Reader
	n        int64
	header   bool // what is read is not data
	skeleton skeleton
}

func (in *tarInput) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.n += int64(n)
	if in.header {
		in.skeleton.add(p[:n])
	}
	return n, err
}

type tarReader struct {
	tr    *tar.Reader
	in    *tarInput
	out   io.Writer
	lim   Limits
	buf   []byte
	cs    *Changeset
	seen  int
	names int64
	holes int64 // bytes of files that did not come out of in
	warn  map[string]bool
	// pseudo holds the files of pseudoLinks by path. Once a link has made one real, only
	// its path counts: what further links lead to.
	pseudo map[string]entry
}

func (t *tarReader) entry(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeCont, tar.TypeGNUSparse:
	default:
		return fmt.Errorf("unknown entry type %q", h.Typeflag)
	}
	name, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	if t.names += int64(len(h.Name) + len(h.Linkname)); t.names > t.lim.Names {
		return fmt.Errorf("names in the tar exceed %d bytes", t.lim.Names)
	}
	if strings.HasPrefix(name, aufsPrefix) && strings.Contains(name, "/") &&
		!(strings.HasPrefix(name, pseudoLinks) && h.Typeflag == tar.TypeReg) {
		return nil // below one of aufs' own directories
	}
	dir, base := path.Split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(strings.TrimSuffix(dir, "/"), base)
	}
	e := entry{path: name, mode: uint16(h.Mode & 07777)}
	if err := e.setOwner(h); err != nil {
		return err
	}
	e.sec, e.nsec = h.ModTime.Unix(), int32(h.ModTime.Nanosecond())
	if err := t.setKind(&e, h); err != nil {
		return err
	}
	if name == "" && e.kind != kindDir {
		return fmt.Errorf("the root must be a directory")
	}
	if err := t.setXattrs(&e, h); err != nil {
		return err
	}
	if e.kind == kindFile {
		if e.size = h.Size; e.size > t.lim.FileSize {
			return fmt.Errorf("file of %d bytes, the limit is %d", e.size, t.lim.FileSize)
		}
		if err := t.file(&e, h); err != nil {
			return err
		}
	}
	switch {
	case strings.HasPrefix(e.path, pseudoLinks) && e.kind == kindFile:
		t.addPseudo(e)
		return nil
	case e.kind == kindHardlink && strings.HasPrefix(e.link, pseudoLinks):
		t.linkPseudo(&e)
	case e.kind == kindDir:
		t.cs.dirs[e.path] = struct{}{}
	}
	t.cs.entries.add(&e)
	return nil
}

// addPseudo keeps a file of aufs for the links to come. Its data is dead until then.
func (t *tarReader) addPseudo(e entry) {
	if t.pseudo == nil {
		t.pseudo = make(map[string]entry)
	}
	t.pseudo[e.path] = e
}

// linkPseudo makes the first link to a file of aufs that file, under the link's name and
// with its attributes, and turns further ones into links to the first.
func (t *tarReader) linkPseudo(e *entry) {
	p, ok := t.pseudo[e.link]
	switch {
	case !ok:
	case strings.HasPrefix(p.path, pseudoLinks):
		e.kind, e.link, e.size, e.runs, e.payload = kindFile, "", p.size, p.runs, p.payload
		if e.xattrs == nil {
			e.xattrs = p.xattrs
		}
		t.pseudo[p.path] = entry{path: e.path}
	default:
		e.link = p.path
	}
}

// dropPseudo notes the data of aufs files that no link made real.
func (t *tarReader) dropPseudo() {
	for _, p := range t.pseudo {
		t.cs.dead = append(t.cs.dead, p.runs...)
	}
}

func (t *tarReader) whiteout(dir, base string) error {
	switch hidden := strings.TrimPrefix(base, whiteoutPrefix); {
	case base == opaqueName:
		t.cs.opaques = append(t.cs.opaques, dir)
	case strings.HasPrefix(base, aufsPrefix) && len(base) > len(aufsPrefix):
		// aufs' own bookkeeping: not part of the image
	case !validName(hidden):
		return fmt.Errorf("whiteout of an impossible name")
	default:
		t.cs.whiteouts = append(t.cs.whiteouts, path.Join(dir, hidden))
	}
	return nil
}

func (e *entry) setOwner(h *tar.Header) error {
	if h.Uid < 0 || h.Uid > math.MaxUint32-1 || h.Gid < 0 || h.Gid > math.MaxUint32-1 {
		return fmt.Errorf("owner %d:%d out of range", h.Uid, h.Gid)
	}
	e.uid, e.gid = uint32(h.Uid), uint32(h.Gid)
	return nil
}

func (t *tarReader) setKind(e *entry, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.kind = kindFile
	case tar.TypeDir:
		e.kind = kindDir
	case tar.TypeFifo:
		e.kind = kindFIFO
	case tar.TypeChar, tar.TypeBlock:
		e.kind = kindChar
		if h.Typeflag == tar.TypeBlock {
			e.kind = kindBlock
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d out of range", h.Devmajor, h.Devminor)
		}
		e.major, e.minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeSymlink:
		e.kind, e.link, e.mode = kindSymlink, h.Linkname, 0777
		if e.link == "" || len(e.link) >= BlockSize || strings.Contains(e.link, "\x00") {
			return fmt.Errorf("symlink target of %d bytes", len(e.link))
		}
	case tar.TypeLink:
		e.kind = kindHardlink
		var err error
		if e.link, err = cleanPath(h.Linkname); err != nil {
			return fmt.Errorf("hard link target: %w", err)
		}
	}
	return nil
}

// setXattrs takes the extended attributes that ext4 and containers can use: others do
// as the kernel does when it is asked to set them, and drop them.
func (t *tarReader) setXattrs(e *entry, h *tar.Header) error {
	other := false
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			switch {
			case strings.HasPrefix(k, "LIBARCHIVE.xattr."):
				other = true
			case strings.HasPrefix(k, "SCHILY.acl."):
				t.warning("ACLs written as text (SCHILY.acl) are not read")
			}
			continue
		}
		if t.names += int64(len(name) + len(v)); t.names > t.lim.Names {
			return fmt.Errorf("names in the tar exceed %d bytes", t.lim.Names)
		}
		isACL := name == xattrPrefixes[0].name || name == xattrPrefixes[1].name
		switch {
		case strings.HasPrefix(name, "user.") && e.kind != kindFile && e.kind != kindDir && e.kind != kindHardlink:
			t.warning("user.* attributes are for files and directories only")
			continue
		case strings.HasPrefix(name, "trusted."):
			t.warning("trusted.* attributes are not taken from images")
			continue
		case isACL && v == aclEmpty:
			continue // set to none
		case isACL && e.kind == kindSymlink:
			t.warning("symlinks have no ACLs")
			continue
		case !isACL && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security."):
			t.warning(fmt.Sprintf("ext4 has no place for the attribute %q", name))
			continue
		}
		e.xattrs = append(e.xattrs, Xattr{name, []byte(v)})
	}
	if other && e.xattrs == nil { // libarchive writes both forms unless it is told not to
		t.warning("extended attributes that only libarchive knows (LIBARCHIVE.xattr) are not read")
	}
	slices.SortFunc(e.xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// warning records a sentence once.
func (t *tarReader) warning(s string) {
	const most = 100
	if t.warn == nil {
		t.warn = make(map[string]bool)
	}
	if !t.warn[s] && len(t.warn) < most {
		t.warn[s] = true
		t.cs.warnings = append(t.cs.warnings, s)
	}
}

// file copies a file's body, and notes where it went for the recipe. A sparse file's
// stays in the skeleton: the tar has it in pieces, between which data has holes.
func (t *tarReader) file(e *entry, h *tar.Header) error {
	if t.in.skeleton.out == nil || e.size == 0 || isSparse(h) {
		return t.data(e)
	}
	t.in.skeleton.data(e.size)
	t.in.header = false
	begin := t.in.n
	if err := t.data(e); err != nil {
		return err
	}
	if n := t.in.n - begin; n != e.size {
		return fmt.Errorf("%d bytes of the tar for a file of %d", n, e.size)
	}
	t.in.header = true
	t.cs.payloads.add(payload{e.size, e.runs})
	e.payload = t.cs.payloads.n
	return nil
}

// isSparse says whether the tar has less of a file than its size.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// data copies the entry's body to the stream and notes where its blocks went.
func (t *tarReader) data(e *entry) error {
	var at, zeros int64 // file block, and how many zero blocks before it are pending
	put := func(p []byte) error {
		n := int64(len(p) / BlockSize)
		if k := len(e.runs) - 1; k >= 0 && e.runs[k].at+e.runs[k].n == at {
			e.runs[k].n += n // the stream is appended to by one file at a time
		} else {
			e.runs = append(e.runs, run{at: at, where: t.cs.blocks, n: n})
		}
		if t.cs.blocks += n; t.cs.DataSize() > t.lim.Data {
			return fmt.Errorf("data in the tar exceeds %d bytes", t.lim.Data)
		}
		at += n
		_, err := t.out.Write(p)
		return err
	}
	for left := e.size; left > 0; {
		n := int(min(left, tarChunk))
		seen := t.in.n
		if _, err := io.ReadFull(t.tr, t.buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes of data, %d missing: %w", e.size, left, err)
		}
		left -= int64(n)
		// A sparse file can be of any size for a few bytes of map.
		if t.holes += max(0, int64(n)-(t.in.n-seen)); t.holes > t.lim.Holes {
			return fmt.Errorf("holes in the tar exceed %d bytes", t.lim.Holes)
		}
		if seen == t.in.n { // all of it
			zeros += int64(n+BlockSize-1) / BlockSize
			continue
		}
		end := (n + BlockSize - 1) &^ (BlockSize - 1)
		clear(t.buf[n:end])
		for p := t.buf[:end]; len(p) > 0; {
			if k := leadingZeros(p); k > 0 {
				zeros += int64(k)
				p = p[k*BlockSize:]
				continue
			}
			if len(e.runs) > 0 && zeros < holeBlocks {
				for ; zeros > 0; zeros-- {
					if err := put(zeroBlock[:]); err != nil {
						return err
					}
				}
			}
			at, zeros = at+zeros, 0
			k := leadingData(p)
			if err := put(p[:k*BlockSize]); err != nil {
				return err
			}
			p = p[k*BlockSize:]
		}
	}
	return nil
}

// leadingZeros counts the blocks of zeros that p, whole blocks, starts with.
func leadingZeros(p []byte) int {
	n := 0
	for len(p) > 0 && p[0] == 0 && bytes.Equal(p[:BlockSize], zeroBlock[:]) {
		p, n = p[BlockSize:], n+1
	}
	return n
}

// leadingData counts the blocks before the first one that is all zeros.
func leadingData(p []byte) int {
	n := 0
	for len(p) > 0 && (p[0] != 0 || !bytes.Equal(p[:BlockSize], zeroBlock[:])) {
		p, n = p[BlockSize:], n+1
	}
	return n
}

// cleanPath makes a name from a tar relative to the root, which it cannot leave. A whiteout
// may be longer than a name on the disk, since what it hides may be as long as that.
func cleanPath(name string) (string, error) {
	if strings.Contains(name, "\x00") {
		return "", fmt.Errorf("name holds a zero byte")
	}
	p := path.Clean("/" + name)[1:]
	for rest := p; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if rest == "" {
			part = strings.TrimPrefix(part, whiteoutPrefix)
		}
		if len(part) > maxNameLen {
			return "", fmt.Errorf("name component of %d bytes, the limit is %d", len(part), maxNameLen)
		}
	}
	return p, nil
}
