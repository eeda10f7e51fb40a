//go:build linux

package vsphere

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
	"vic/vmdk"
)

// What to do about findings.
const (
	adviceSweep  = "remove it: vic gc"
	adviceRemake = "remove its record, the .json file beside it, and pull its images again: they get another disk"
	advicePull   = "pull the image again"
)

// Checked is how much a Check has looked at.
type Checked struct {
	Disks    int // with a record
	Images   int // of all VCHs
	Summed   int // disks whose extents were read back, and have the checksums of their records
	Compared int // disks that were read back and compared
	Foreign  int // disks that only ESXi can read
	Unknown  int // disks of layers that the local store does not have
}

// CheckOptions say how much a Check looks at. By default it reads no more than the beginning of an extent.
type CheckOptions struct {
	// Deep has all extents read back whose records have checksums.
	Deep bool
	// Local is a store with the same layers: what it has is read back and compared; nil is none.
	Local *layerstore.Store
	// Progress, which may be nil, is told how many bytes of extents have been read of how many, for Deep.
	Progress func(read, total int64)
	// only are the disks that are read in full; nil is all.
	only map[string]bool
}

// Check verifies the store and tells report, from the calling goroutine, what is wrong: of each disk that its files are there, with
// the sizes and content IDs that its record has, and all its parents; of each image of any VCH that its disks are there. Pulls and
// removals may go on meanwhile. The error says that it could not do its work; it is nil however many findings there are.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(layerstore.Finding)) (*Checked, error) {
	c := &checker{s: s, o: o, tell: report, files: map[string]map[string]int64{}, records: map[string]*diskRecord{}, bad: map[string]bool{}, cache: newCache(), users: map[string][]string{}}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("check image store %s: %w", s.d.Path("."), err)
	}
	return &c.done, nil
}

type checker struct {
	s       *Store
	o       CheckOptions
	tell    func(layerstore.Finding)
	files   map[string]map[string]int64 // of disks: their files' sizes, by suffix
	records map[string]*diskRecord
	bad     map[string]bool     // disks about which there are findings
	users   map[string][]string // of disks: the images that need them
	cache   *cache              // of its own: what others have read may have been damaged since
	done    Checked
}

func (c *checker) run(ctx context.Context) error {
	list, err := c.s.d.List(ctx, disksFolder)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range list {
		name, suffix := cutSuffix(e.Name)
		if _, err := chainOf(name); err != nil || suffix == "" {
			continue
		}
		if c.files[name] == nil {
			c.files[name] = map[string]int64{}
			names = append(names, name)
		}
		c.files[name][suffix] = e.Size
	}
	slices.Sort(names)
	images, err := c.s.allImages(ctx)
	if err != nil {
		return err
	}
	if err := c.s.nameImages(ctx, images); err != nil {
		return err
	}
	for _, img := range images {
		for _, name := range img.Disks {
			if label := img.label(); !slices.Contains(c.users[name], label) {
				c.users[name] = append(c.users[name], label)
			}
		}
	}
	needed, err := c.s.needed(ctx) // after the list: what was being made then is named
	if err != nil && !errors.Is(err, errUnreadable) {
		return err
	}
	for _, name := range names {
		if err := c.readRecord(ctx, name, needed == nil || needed[name]); err != nil {
			return err
		}
	}
	for _, name := range names {
		if rec := c.records[name]; rec != nil {
			c.done.Disks++
			if err := c.disk(ctx, name, rec); err != nil {
				return err
			}
		}
	}
	for _, img := range images {
		c.done.Images++
		c.image(img)
	}
	if c.o.Deep {
		if err := c.sums(ctx, names); err != nil {
			return err
		}
	}
	if c.o.Local == nil {
		return nil
	}
	for _, name := range names {
		if rec := c.records[name]; rec != nil && !c.bad[name] && c.reads(name) {
			if err := c.compare(ctx, name, rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// reads tells whether a disk may be read in full.
func (c *checker) reads(name string) bool { return c.o.only == nil || c.o.only[name] }

// problem tells what is wrong with a disk.
func (c *checker) problem(name, advice, format string, args ...any) {
	c.bad[name] = true
	f := layerstore.Finding{About: layerstore.AboutLayer, Path: c.s.DiskPath(name), Problem: fmt.Sprintf(format, args...), Advice: advice, Images: c.users[name]}
	if chain, err := chainOf(name); err == nil {
		f.ID = chain.Encoded()
	}
	c.tell(f)
}

// readRecord reads a disk's record. Files without one are what a pull makes, or has left.
func (c *checker) readRecord(ctx context.Context, name string, needed bool) error {
	text, err := c.s.d.ReadFile(ctx, path.Join(disksFolder, name+".json"), recordLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var rec diskRecord
	if err == nil && json.Unmarshal(text, &rec) == nil {
		c.records[name] = &rec
		return nil
	}
	if !needed {
		c.tell(layerstore.Finding{About: layerstore.AboutFile, Path: c.s.DiskPath(name), Problem: "a disk that was never finished", Advice: adviceSweep, Harmless: true})
	}
	return nil
}

// disk checks one disk: its record, its descriptor, its extent.
func (c *checker) disk(ctx context.Context, name string, rec *diskRecord) error {
	if chain, err := chainOf(name); err != nil || chain != rec.Chain {
		c.problem(name, adviceRemake, "its record is of layer %s", rec.Chain)
		return nil
	}
	parent := vmdk.NoParent
	switch below := c.records[rec.Parent]; {
	case rec.Parent == baseName:
		parent = c.s.base.CID
	case rec.Parent != "" && below == nil:
		c.problem(name, adviceRemake, "its parent %s is not there", rec.Parent)
		return nil
	case rec.Parent != "":
		if _, err := fmt.Sscanf(below.CID, "%08x", &parent); err != nil {
			c.problem(rec.Parent, adviceRemake, "its record has no content ID: %q", below.CID)
			return nil
		}
	}
	desc, err := c.s.descriptor(ctx, name)
	var format *vmdk.FormatError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.problem(name, adviceRemake, "its descriptor is not there")
		return nil
	case errors.As(err, &format):
		c.problem(name, adviceRemake, "its descriptor: %v", err)
		return nil
	case err != nil:
		return err
	}
	switch {
	case fmt.Sprintf("%08x", desc.CID) != rec.CID:
		c.problem(name, adviceRemake, "its content ID is %08x and was %s: somebody has written to it", desc.CID, rec.CID)
	case desc.ParentCID != parent:
		c.problem(name, adviceRemake, "it was made over content ID %08x, its parent %q has %08x", desc.ParentCID, rec.Parent, parent)
	case desc.Capacity() != c.s.capacity:
		c.problem(name, adviceRemake, "it has %d bytes, disks of the store %d", desc.Capacity(), c.s.capacity)
	case c.s.encoding.uploaded() && desc.ParentFileNameHint != rec.Parent+".vmdk":
		c.problem(name, adviceRemake, "its descriptor names %q as its parent, its record %s", desc.ParentFileNameHint, rec.Parent)
	default:
		return c.extent(ctx, name, rec)
	}
	return nil
}

// extent checks a disk's extent file: its size, and what of it can be read at once.
func (c *checker) extent(ctx context.Context, name string, rec *diskRecord) error {
	suffix := "-delta.vmdk"
	if rec.Extent != "" {
		_, suffix = cutSuffix(rec.Extent)
	} else if rec.Size == 0 { // an object, not a file
		c.done.Foreign++
		return nil
	}
	size, there := c.files[name][suffix]
	if there && size != rec.Size { // as listed, a thin one may have what it takes up
		var err error
		if size, err = c.s.d.Stat(ctx, path.Join(disksFolder, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch {
	case !there:
		c.problem(name, adviceRemake, "its extent %s%s is not there", name, suffix)
		return nil
	case size != rec.Size:
		c.problem(name, adviceRemake, "its extent has %d bytes and had %d", size, rec.Size)
		return nil
	}
	_, err := c.s.openLink(ctx, name, c.cache)
	var format *vmdk.FormatError
	switch {
	case errors.Is(err, ErrForeign):
		c.done.Foreign++
	case errors.As(err, &format):
		c.problem(name, adviceRemake, "its extent: %v", err)
	case err != nil:
		return err
	}
	return nil
}

// image checks that an image's disks are there, and stand on each other.
func (c *checker) image(img vchImage) {
	problem := func(format string, args ...any) {
		c.tell(layerstore.Finding{About: layerstore.AboutImage, ID: img.ID.Encoded(), Path: c.s.d.Path(img.file), Problem: fmt.Sprintf(format, args...), Advice: advicePull, Images: []string{img.label()}})
	}
	if img.ID.Validate() != nil || len(img.Disks) == 0 {
		img.ID = digest.FromString("")
		problem("the record of an image of the VCH %s is cut off", img.vch)
		return
	}
	for i, name := range img.Disks {
		rec := c.records[name]
		if rec == nil {
			problem("its disk %s is not there", name)
			return
		}
		below := rec.Parent == "" || rec.Parent == baseName
		if i+1 < len(img.Disks) {
			below = rec.Parent == img.Disks[i+1]
		}
		if !below {
			problem("its disk %s stands on %q, which is none of it", name, rec.Parent)
			return
		}
	}
}

// sums reads the extents back whose records have checksums.
func (c *checker) sums(ctx context.Context, names []string) error {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		rec := c.records[name]
		return rec == nil || rec.Sum == nil || c.bad[name] || !c.reads(name)
	})
	var read, total int64
	for _, name := range names {
		total += c.records[name].Size
	}
	p := make([]byte, mostAhead*chunkSize)
	for _, name := range names {
		rec := c.records[name]
		crc := crc32.New(castagnoli)
		for off := int64(0); off < rec.Size; off += int64(len(p)) {
			p := p[:min(int64(len(p)), rec.Size-off)]
			err := c.s.d.ReadRange(ctx, path.Join(disksFolder, name+"-delta.vmdk"), p, off)
			if errors.Is(err, fs.ErrNotExist) { // it was removed meanwhile
				break
			}
			if err != nil {
				return err
			}
			crc.Write(p)
			if read += int64(len(p)); c.o.Progress != nil {
				c.o.Progress(read, total)
			}
		}
		if _, err := c.s.record(ctx, name); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if sum := crc.Sum32(); sum != *rec.Sum {
			c.problem(name, adviceRemake, "its extent has the checksum %08x and had %08x: it is not what was sent", sum, *rec.Sum)
			continue
		}
		c.done.Summed++
	}
	return nil
}

// compare reads a disk back: what its layers changed must be there, and nothing else.
func (c *checker) compare(ctx context.Context, name string, rec *diskRecord) error {
	local, err := c.o.Local.OpenDisk(rec.Chain)
	if errors.Is(err, fs.ErrNotExist) {
		c.done.Unknown++
		return nil
	}
	if err != nil {
		return err
	}
	defer local.Close() // read only
	remote, err := c.s.openDisk(ctx, name, c.cache)
	switch {
	case errors.Is(err, ErrForeign):
		return nil // it was counted
	case errors.Is(err, fs.ErrNotExist): // something below it was found to be wrong, or it was removed
		return nil
	case err != nil:
		return c.damage(name, err)
	}
	defer remote.Close()
	layers := local.Depth()
	if below := c.records[rec.Parent]; below != nil {
		if i := slices.Index(local.Chains(), below.Chain); i > 0 {
			layers = i
		}
	}
	c.done.Compared++
	off, err := differs(ctx, local.Disk, remote, layers)
	if err != nil {
		return c.damage(name, err)
	}
	if off >= 0 {
		c.problem(name, adviceRemake, "byte %d is not what the layer has", off)
	}
	return nil
}

// damage tells of an error in reading a disk, unless the server was away.
func (c *checker) damage(name string, err error) error {
	var format *vmdk.FormatError
	if !errors.As(err, &format) {
		return err
	}
	c.problem(name, adviceRemake, "it cannot be read: %v", err)
	return nil
}

// differs returns the first byte found that is not the same in both, of what the top layers of the local disk or the top disk of
// the remote one hold; negative if there is none.
func differs(ctx context.Context, local *vmdk.Disk, remote *Disk, layers int) (int64, error) {
	got := make([]byte, 1<<20)
	var done []vmdk.Run // what was compared
	for b, err := range local.Blocks(layers, vmdk.DefaultGrainSize) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, err
		}
		p := got[:len(b.Data)]
		if _, err := remote.ReadAt(p, b.Off); err != nil {
			return 0, err
		}
		if i := mismatch(p, b.Data); i >= 0 {
			return b.Off + int64(i), nil
		}
		if n := len(done); n > 0 && done[n-1].Off+done[n-1].Len == b.Off {
			done[n-1].Len += int64(len(b.Data))
		} else {
			done = append(done, vmdk.Run{Off: b.Off, Len: int64(len(b.Data))})
		}
	}
	if !remote.deltas[0] {
		return -1, nil // it holds all of the disk
	}
	want := make([]byte, len(got))
	for r, err := range remote.Runs(0) {
		if err != nil {
			return 0, err
		}
		for off, end := r.Off, r.Off+r.Len; r.Link == 0 && off < end; {
			for len(done) > 0 && done[0].Off+done[0].Len <= off {
				done = done[1:]
			}
			if len(done) > 0 && done[0].Off <= off {
				off = done[0].Off + done[0].Len
				continue
			}
			n := min(end-off, int64(len(got)))
			if len(done) > 0 {
				n = min(n, done[0].Off-off)
			}
			if _, err := remote.ReadAt(got[:n], off); err != nil {
				return 0, err
			}
			if _, err := local.ReadAt(want[:n], off); err != nil {
				return 0, err
			}
			if i := mismatch(got[:n], want[:n]); i >= 0 {
				return off + int64(i), nil
			}
			off += n
		}
	}
	return -1, nil
}

// mismatch is the first byte that two slices of equal length differ in, negative if there is none.
func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
