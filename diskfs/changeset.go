package diskfs

// A Changeset is a layer's tar taken apart: what it changes, in tar order, without the
// data of its files, which ReadTar appended to a stream.
type Changeset struct {
	entries   entryList
	whiteouts []string // paths removed from the layers below
	opaques   []string // directories emptied of what the layers below put there
	dirs      map[string]struct{}
	payloads  payloadList
	blocks    int64 // of the stream
	dead      []run // stream blocks that no entry has
	warnings  []string
}

// Len returns the number of entries: 0 means the layer changes nothing.
func (c *Changeset) Len() int { return c.entries.n + len(c.whiteouts) + len(c.opaques) }

// DataSize returns the length in bytes of the data stream.
func (c *Changeset) DataSize() int64 { return c.blocks * BlockSize }

// Warnings tells, a sentence each, what the tar holds that no ext4 could keep and
// that other implementations drop as well.
func (c *Changeset) Warnings() []string { return c.warnings }

type kind byte

const (
	kindFile kind = iota
	kindDir
	kindSymlink
	kindHardlink
	kindChar
	kindBlock
	kindFIFO
)

// entry is one tar header, cleaned: "" is the root, names are separated by single
// slashes, none is "." or "..".
type entry struct {
	path         string
	link         string // symlink: target as it stands; hard link: cleaned path
	kind         kind
	mode         uint16 // permissions with setuid, setgid, sticky
	uid, gid     uint32
	nsec         int32
	sec          int64 // mtime
	major, minor uint32
	size         int64
	runs         []run // stream blocks; what none covers is zeros
	xattrs       []Xattr
	payload      int // its index in payloads, plus 1; 0 if it has none
}

// dirtype is the file type byte of directory entries for the kind.
func (k kind) dirtype() byte {
	return [...]byte{fileTypeFile, fileTypeDir, fileTypeLink, 0, fileTypeChar, fileTypeBlk, fileTypeFIFO}[k]
}

// format is the file type in an inode's mode.
func (k kind) format() uint16 {
	return [...]uint16{modeFile, modeDir, modeLink, 0, modeChar, modeBlock, modeFIFO}[k]
}

// Limits bound what ReadTar accepts; the zero value is the defaults.
type Limits struct {
	Entries  int   // tar entries; 0 means 8 million
	FileSize int64 // bytes of one file, holes included; 0 means 16 TiB, ext4's limit
	Data     int64 // bytes of data, zeros left out; 0 means no limit
	Holes    int64 // bytes of sparse files that the tar does not hold; 0 means 2 TiB
	Names    int64 // bytes of names, links and extended attributes together; 0 means 1 GiB
}

func (l Limits) orDefault() Limits {
	if l.Entries == 0 {
		l.Entries = 8 << 20
	}
	if l.FileSize == 0 {
		l.FileSize = 1<<32*BlockSize - BlockSize
	}
	if l.Data == 0 {
		l.Data = 1<<63 - 1
	}
	if l.Holes == 0 {
		l.Holes = 2 << 40
	}
	if l.Names == 0 {
		l.Names = 1 << 30
	}
	return l
}
