package diskfs

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A specimen is a small file system with one of everything, and a list of its metadata
// blocks: what to damage, and how to make the checksums right again afterwards.
type specimen struct {
	disk   *memDisk
	high   int64
	blocks []int64                // of metadata, ascending
	seals  map[int64]func([]byte) // of those with checksums of their own
	groups []group
	seed   uint32
}

var specimenOptions = FormatOptions{Capacity: 16 << 20}

func newSpecimen(t testing.TB) *specimen {
	t.Helper()
	f, disk, high := formatMem(t, specimenOptions)
	var holes strings.Builder
	for range 6 {
		holes.WriteString("x" + strings.Repeat("\x00", 17*BlockSize-1))
	}
	l := append(layer{
		file("a", "content"), link("b", "a"), folder("d"), folder("d/e"), file("d/e/f", "deep"), file("empty", ""),
		symlink("fast", "d/e"), symlink("slow", strings.Repeat("./", 50)+"d"), device("null", 'c', 1, 3), device("fifo", 'p', 0, 0),
		file("holes", holes.String()), file("large", strings.Repeat("0123456789", 10000)),
		file("x", "").xattr("user.x", strings.Repeat("x", 900)), file("y", "").xattr("user.x", strings.Repeat("x", 900)).xattr("security.capability", capability),
		file("z", "").xattr("user.small", "1").xattr("system.posix_acl_access", accessACL),
	}, many("indexed", 1000)...)
	high, err := applyMem(t, f, disk, l.tar(t), high, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	checkFS(t, f)
	s := &specimen{disk: disk, high: high, seals: map[int64]func([]byte){}, groups: f.groups, seed: f.seed}
	add := func(block int64, seal func([]byte)) {
		s.blocks = append(s.blocks, block)
		s.seals[block] = seal
	}
	add(0, func(p []byte) {
		p = p[superOffset:]
		le.PutUint32(p[0x3FC:], crc32c(^uint32(0), p[:0x3FC]))
	})
	add(1, nil) // group descriptors: see reseal
	add(f.groups[0].blockBitmap, nil)
	add(f.groups[0].inodeBitmap, nil)
	for k := range int64(tableBlocks) {
		b, err := f.load(f.groups[0].inodeTable + k)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b.data[:], zeroBlock[:]) {
			break
		}
		add(f.groups[0].inodeTable+k, func(p []byte) {
			for i := range int64(inodesPerBlock) {
				in := rawInode(p[i*inodeSize:][:inodeSize])
				sum := inodeChecksum(f.inodeSeed(uint32(k*inodesPerBlock+i)+1, in.generation()), in)
				le.PutUint16(in[inoChecksumLo:], uint16(sum))
				le.PutUint16(in[inoChecksumHi:], uint16(sum>>16))
			}
		})
	}
	for ino := uint32(1); ino < inodesPerGroup; ino++ {
		in, err := f.inode(ino)
		if err != nil {
			t.Fatal(err)
		}
		seed := f.inodeSeed(ino, in.generation())
		if !in.inUse() || ino == journalInode {
			continue
		}
		if at := in.xattrBlock(); at != 0 && s.seals[at] == nil {
			add(at, func(p []byte) { le.PutUint32(p[16:], xattrChecksum(f.seed, at, p)) })
		}
		if in.flags()&inodeExtents == 0 {
			continue
		}
		err = f.extents(ino, in, func(r run, _ bool) error {
			for k := range r.n {
				switch {
				case in.kind() == modeLink:
					add(r.where+k, nil)
				case in.kind() != modeDir:
				case in.flags()&inodeIndexed != 0 && r.at+k == 0:
					add(r.where+k, func(p []byte) {
						limit, count := int(le.Uint16(p[dxRootOff:])), int(le.Uint16(p[dxRootOff+2:]))
						if limit <= dxRootLimit && count <= limit {
							le.PutUint32(p[dxRootOff+8*limit+4:], dxChecksum(seed, p, dxRootOff, count, limit))
						}
					})
				default:
					add(r.where+k, func(p []byte) { le.PutUint32(p[dirTail+8:], dirChecksum(seed, p)) })
				}
			}
			return nil
		}, func(at int64) error {
			add(at, func(p []byte) {
				end := extentEntry * (blockExtents + 1)
				le.PutUint32(p[end:], crc32c(seed, p[:end]))
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(s.blocks)
	return s
}

// edit is one damage: the byte at off of the n-th metadata block becomes v.
type edit struct {
	n   uint16
	off uint16
	v   byte
}

// damaged returns the specimen with the edits, checksums made right again if sealed.
func (s *specimen) damaged(edits []edit, sealed bool) *memDisk {
	d := newMemDisk(s.disk.size, s.disk)
	touched := map[int64]bool{}
	for _, e := range edits {
		block := s.blocks[int(e.n)%len(s.blocks)]
		d.WriteAt([]byte{e.v}, block*BlockSize+int64(e.off%BlockSize))
		touched[block] = true
	}
	if !sealed {
		return d
	}
	reseal := func(block int64, seal func(p []byte)) {
		p := bytes.Clone(d.block(block)[:])
		seal(p)
		d.WriteAt(p, block*BlockSize)
	}
	for block := range touched {
		if seal := s.seals[block]; seal != nil {
			reseal(block, seal)
		}
	}
	reseal(1, func(p []byte) {
		p = p[:groupDescSize]
		var g group
		g.unmarshal(p, true)
		g.bbCsum = crc32c(s.seed, d.block(s.groups[0].blockBitmap)[:])
		g.ibCsum = crc32c(s.seed, d.block(s.groups[0].inodeBitmap)[:inodesPerGroup/8])
		g.marshal(p, s.seed, 0)
	})
	return d
}

// use does to a damaged disk all that a store does: read, check, and apply a layer. It
// must end, without a panic, and without more memory than the disk is worth.
func (s *specimen) use(t testing.TB, disk *memDisk, tar []byte) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	reports := 0
	f, err := Open(disk, disk.size)
	if err != nil {
		return
	}
	touchAll(f)
	f.Check(func(error) error {
		if reports++; reports > 100 {
			return fs.ErrInvalid
		}
		return nil
	})
	applyMem(t, f, newMemDisk(disk.size, disk), tar, s.high, Limits{})
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
		t.Errorf("allocated %d MiB in %v", n>>20, time.Since(start))
	}
}

// export writes a damaged disk as a tar and compares it with the whole one: these must end too.
func (s *specimen) export(t testing.TB, disk *memDisk) {
	t.Helper()
	f, err := Open(disk, disk.size)
	if err != nil {
		return
	}
	f.WriteTar(&boundedWriter{32 << 20}) // a damaged file may have any size
	whole, err := Open(s.disk, s.disk.size)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func(Change) error { return nil }
	Diff(whole, f, DiffOptions{}, nothing)
	Diff(f, whole, DiffOptions{Shared: disk.size}, nothing)
}

// damageLayer touches as much of the specimen as a layer can.
func damageLayer(t testing.TB) []byte {
	return append(layer{
		opaque("d"), whiteout("indexed/f5"), whiteout("holes"), file("a", "content"), file("x", "new").xattr("user.x", strings.Repeat("x", 900)),
		link("b2", "b"), folder("fast"), file("slow/through", "1"), folder("large"), file("y", ""), file("z", "1"), symlink("null", "x"),
	}, many("indexed/sub", 20)...).tar(t)
}

// TestBitFlips: with checksums as they are, a flipped bit in metadata is an error or
// changes nothing that can be seen.
func TestBitFlips(t *testing.T) {
	s := newSpecimen(t)
	f, err := Open(s.disk, s.disk.size)
	if err != nil {
		t.Fatal(err)
	}
	want := fsTree(t, f)
	r, flips := random(t), 1000
	if testing.Short() {
		flips = 200
	}
	for range flips {
		n, off := r.IntN(len(s.blocks)), r.IntN(BlockSize)
		block := s.blocks[n]
		e := edit{uint16(n), uint16(off), s.disk.block(block)[off] ^ 1<<r.IntN(8)}
		f, err := Open(s.damaged([]edit{e}, false), s.disk.size)
		if err != nil {
			continue
		}
		got, err := walkTree(f)
		if err != nil {
			continue
		}
		if s.seals[block] == nil && block != 1 {
			continue // bitmaps, which reading does not need, and symlinks, which have no checksum
		}
		compareTrees(t, "damaged", got, "whole", want)
		if t.Failed() {
			t.Fatalf("block %d, byte %d", block, off)
		}
	}
}

// TestDamage: with checksums made right again, as a malicious guest would, anything may be
// read, but it ends.
func TestDamage(t *testing.T) {
	s, tar := newSpecimen(t), damageLayer(t)
	r, disks := random(t), 600
	if testing.Short() {
		disks = 100
	}
	for range disks {
		var edits []edit
		for range 1 + r.IntN(4) {
			v := byte(r.Uint32())
			if r.IntN(2) == 0 {
				v = []byte{0, 1, 2, 0x7f, 0x80, 0xff}[r.IntN(6)]
			}
			off := r.IntN(BlockSize)
			if r.IntN(2) == 0 {
				off %= 300 // headers
			}
			edits = append(edits, edit{uint16(r.IntN(len(s.blocks))), uint16(off), v})
		}
		s.use(t, s.damaged(edits, true), tar)
		if len(edits) == 1 { // it takes as long as all the rest
			s.export(t, s.damaged(edits, true))
		}
		if t.Failed() {
			t.Fatalf("edits %+v", edits)
		}
	}
}

// random returns a source whose seed it logs.
func random(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
