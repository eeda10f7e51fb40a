package diskfs

import (
	"encoding/binary"
	"iter"
)

// An entryList keeps entries in the order of the tar, a third of the size that they have as
// structs: an image may have a million of them. Of an entry it keeps what is not as in the
// one before, in varints as encoding/binary has them:
//
//	uvarint  bytes that the path has in common with the one before, then the rest of it
//	byte     kind, and what follows: hasOwner, hasTime
//	uvarint  mode
//	uvarint  uid, gid                               hasOwner
//	varint   seconds, less those of the one before  hasTime
//	uvarint  nanoseconds                            hasTime
//	by kind  link | major, minor | size, payload, runs
//	xattrs   their number, names and values
//
// Strings have their length before them.
type entryList struct {
	chunks chunkList
	n      int
	last   entry // the one that the next is told from
}

const (
	hasOwner = 0x40 // another owner than the entry before
	hasTime  = 0x80 // another time
	kindMask = 0x3f
)

// add appends e, and keeps nothing of it.
func (l *entryList) add(e *entry) {
	chunk := l.chunks.next()
	*chunk = appendEntry(*chunk, e, &l.last)
	l.n++
	l.last = entry{path: e.path, uid: e.uid, gid: e.gid, sec: e.sec, nsec: e.nsec}
}

func appendEntry(b []byte, e, last *entry) []byte {
	common := 0
	for common < min(len(e.path), len(last.path)) && e.path[common] == last.path[common] {
		common++
	}
	b = binary.AppendUvarint(b, uint64(common))
	b = appendString(b, e.path[common:])
	what := byte(e.kind)
	if e.uid != last.uid || e.gid != last.gid {
		what |= hasOwner
	}
	if e.sec != last.sec || e.nsec != last.nsec {
		what |= hasTime
	}
	b = append(b, what)
	b = binary.AppendUvarint(b, uint64(e.mode))
	if what&hasOwner != 0 {
		b = binary.AppendUvarint(b, uint64(e.uid))
		b = binary.AppendUvarint(b, uint64(e.gid))
	}
	if what&hasTime != 0 {
		b = binary.AppendVarint(b, e.sec-last.sec)
		b = binary.AppendUvarint(b, uint64(e.nsec))
	}
	switch e.kind {
	case kindSymlink, kindHardlink:
		b = appendString(b, e.link)
	case kindChar, kindBlock:
		b = binary.AppendUvarint(b, uint64(e.major))
		b = binary.AppendUvarint(b, uint64(e.minor))
	case kindFile:
		b = binary.AppendUvarint(b, uint64(e.size))
		b = binary.AppendUvarint(b, uint64(e.payload))
		b = appendRuns(binary.AppendUvarint(b, uint64(len(e.runs))), e.runs)
	}
	b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		b = appendString(b, x.Name)
		b = appendString(b, string(x.Value))
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendRuns appends of each run the blocks between it and the one before, its place less
// the end of the one before, and its length.
func appendRuns(b []byte, runs []run) []byte {
	var at, where int64
	for _, r := range runs {
		b = binary.AppendUvarint(b, uint64(r.at-at))
		b = binary.AppendVarint(b, r.where-where)
		b = binary.AppendUvarint(b, uint64(r.n))
		at, where = r.at+r.n, r.where+r.n
	}
	return b
}

// A payloadList keeps payloads in order, as an entryList keeps entries: their size and runs.
type payloadList struct {
	chunks chunkList
	n      int
}

func (l *payloadList) add(p payload) {
	chunk := l.chunks.next()
	b := binary.AppendUvarint(*chunk, uint64(p.size))
	*chunk = appendRuns(binary.AppendUvarint(b, uint64(len(p.runs))), p.runs)
	l.n++
}

// all yields the payloads and their numbers. Runs are valid until the next.
func (l *payloadList) all() iter.Seq2[int, payload] {
	return func(yield func(int, payload) bool) {
		i := 0
		var runs []run
		for _, chunk := range l.chunks {
			for r := (entryReader{chunk}); len(r.b) > 0; i++ {
				size := int64(r.uvarint())
				runs = r.runs(runs[:0])
				if !yield(i, payload{size, runs}) {
					return
				}
			}
		}
	}
}

// A chunkList is bytes that are appended to without being copied again and again.
type chunkList [][]byte

// next returns the chunk to append the next thing to, whole.
func (c *chunkList) next() *[]byte {
	const full, room = 64 << 10, 1 << 10 // most things fit into room
	if k := len(*c); k == 0 || len((*c)[k-1]) >= full {
		*c = append(*c, make([]byte, 0, full+room))
	}
	return &(*c)[len(*c)-1]
}

// all yields the entries in order. Each is valid until the next, but for its strings, and may
// be changed.
func (l *entryList) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		var e entry
		var path []byte
		var runs []run
		for _, chunk := range l.chunks {
			for r := (entryReader{chunk}); len(r.b) > 0; {
				common := int(r.uvarint())
				path = append(path[:common], r.bytes()...)
				r.entry(&e, &runs)
				e.path = string(path)
				if !yield(&e) {
					return
				}
			}
		}
	}
}

// An entryReader takes apart what appendEntry wrote.
type entryReader struct{ b []byte }

func (r *entryReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.b = r.b[n:]
	return v
}

func (r *entryReader) varint() int64 {
	v, n := binary.Varint(r.b)
	r.b = r.b[n:]
	return v
}

func (r *entryReader) bytes() []byte {
	n := r.uvarint()
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// entry reads what follows the path. e is the entry before, whose owner and time it takes.
func (r *entryReader) entry(e *entry, runs *[]run) {
	what := r.b[0]
	r.b = r.b[1:]
	*e = entry{kind: kind(what & kindMask), uid: e.uid, gid: e.gid, sec: e.sec, nsec: e.nsec}
	e.mode = uint16(r.uvarint())
	if what&hasOwner != 0 {
		e.uid, e.gid = uint32(r.uvarint()), uint32(r.uvarint())
	}
	if what&hasTime != 0 {
		e.sec += r.varint()
		e.nsec = int32(r.uvarint())
	}
	switch e.kind {
	case kindSymlink, kindHardlink:
		e.link = string(r.bytes())
	case kindChar, kindBlock:
		e.major, e.minor = uint32(r.uvarint()), uint32(r.uvarint())
	case kindFile:
		e.size, e.payload = int64(r.uvarint()), int(r.uvarint())
		*runs = r.runs((*runs)[:0])
		e.runs = *runs
	}
	if n := r.uvarint(); n > 0 {
		e.xattrs = make([]Xattr, n)
		for i := range e.xattrs {
			e.xattrs[i] = Xattr{string(r.bytes()), append([]byte(nil), r.bytes()...)}
		}
	}
}

func (r *entryReader) runs(runs []run) []run {
	var at, where int64
	for n := r.uvarint(); n > 0; n-- {
		at += int64(r.uvarint())
		where += r.varint()
		length := int64(r.uvarint())
		runs = append(runs, run{at: at, where: where, n: length})
		at, where = at+length, where+length
	}
	return runs
}
