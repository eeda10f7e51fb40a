package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"time"
)

// LogPort and ControlPort are the names of the virtio-serial ports.
const (
	LogPort     = "vic.log"
	ControlPort = "vic.control"
)

// RecordType says what a log record holds.
type RecordType byte

const (
	Stdout     RecordType = 1 // bytes the process wrote; with a terminal all of them
	Stderr     RecordType = 2
	RecStarted RecordType = 3 // JSON Started: the process runs
	RecExit    RecordType = 4 // JSON Exit: the last record of a boot, unless it says that it is not
	Diagnostic RecordType = 5 // text from the tether, for people
)

// Record is one entry of a container's log.
type Record struct {
	Type RecordType
	Time time.Time // by the guest's clock
	// Data is at most MaxPayload bytes.
	Data []byte
	// Offset of the record in the log, and of the byte after it.
	Offset, End int64
}

// Started is the payload of RecStarted.
type Started struct {
	PID    int    `json:"pid"`    // in the guest
	Kernel string `json:"kernel"` // release, as uname -r
	// Addresses of each NIC of the Config, in its order, with those from DHCP.
	Addresses [][]string `json:"addresses,omitempty"`
}

// Exit is how a process ended; the payload of RecExit.
type Exit struct {
	// Code is the exit code as docker gives it: 128+n for a process that signal n killed,
	// 126 or 127 for one that could not be executed, 128 for a container that could not be set up.
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"` // that killed it, or 0
	OOM    bool `json:"oom,omitempty"`    // the guest's kernel killed something for lack of memory
	// Again is how many ns later the process is started again; 0 if it is not and the VM ends. Then
	// this may repeat the exit before, of a process that was not started again after all.
	Again int64 `json:"again,omitempty"`
	// Error says, in docker's words, why the process was never started: `exec: "x": executable
	// file not found in $PATH`. "" if it was.
	Error string `json:"error,omitempty"`
}

// Started decodes the payload of a RecStarted record.
func (r Record) Started() (Started, error) {
	var s Started
	if r.Type != RecStarted {
		return s, fmt.Errorf("wire: record of type %d is not a start", r.Type)
	}
	if err := json.Unmarshal(r.Data, &s); err != nil {
		return s, fmt.Errorf("wire: parse start record: %w", err)
	}
	return s, nil
}

// Exit decodes the payload of a RecExit record.
func (r Record) Exit() (Exit, error) {
	var e Exit
	if r.Type != RecExit {
		return e, fmt.Errorf("wire: record of type %d is not an exit", r.Type)
	}
	if err := json.Unmarshal(r.Data, &e); err != nil {
		return e, fmt.Errorf("wire: parse exit record: %w", err)
	}
	return e, e.check()
}

// check refuses what is no exit code.
func (e Exit) check() error {
	if e.Code < 0 || e.Code > 255 {
		return fmt.Errorf("wire: exit code %d", e.Code)
	}
	return nil
}

// AppendRecord appends a record as it is written to the log. It panics if data
// is longer than MaxPayload.
func AppendRecord(b []byte, t RecordType, at time.Time, data []byte) []byte {
	return appendFrame(b, frame{typ: byte(t), sum: sumXXH64, stamp: uint64(at.UnixNano()), payload: data})
}

// LogReader reads the records of a log in order. It holds one record at most,
// and passes over damage: whatever is no whole record.
type LogReader struct {
	fr *frameReader
}

// NewLogReader reads a log from r, whose first byte is at off in the log. Any off
// will do; reading begins with the first record at or after it.
func NewLogReader(r io.Reader, off int64) *LogReader {
	fr := newFrameReader(r)
	fr.off = off
	return &LogReader{fr}
}

// Next returns the next record. Its Data is valid until the next call. When r
// has ended Next returns io.EOF, and may be called again once r has more, which is
// how a growing file is followed: an unfinished record is kept.
func (l *LogReader) Next() (Record, error) {
	for {
		f, off, err := l.fr.next()
		if err != nil {
			return Record{}, err
		}
		if rec, ok := record(f, off, l.fr.off); ok {
			return rec, nil
		}
	}
}

// Offset is where in the log the next record is looked for. A LogReader made
// at that offset goes on where this one is.
func (l *LogReader) Offset() int64 { return l.fr.off }

// Skipped is how many bytes so far belonged to no whole record.
func (l *LogReader) Skipped() int64 { return l.fr.skipped }

func record(f frame, off, end int64) (Record, bool) {
	t := RecordType(f.typ)
	if t < Stdout || t > Diagnostic {
		return Record{}, false // of a later version
	}
	return Record{Type: t, Time: time.Unix(0, int64(f.stamp)), Data: f.payload, Offset: off, End: end}, true
}

// Backward goes through the records of the first size bytes of a log from the
// last to the first, reading 64 KiB at a time. Data is valid within the loop's body. A read
// error ends it, as the second value.
func Backward(r io.ReaderAt, size int64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		const step = 64 << 10
		buf := make([]byte, step+headerSize+maxStuffed+len(magic))
		var found []Record
		// Each turn takes the records that begin in [begin, end).
		for end := size; end > 0; {
			begin := max(0, end-step)
			b := buf[:min(size-begin, int64(len(buf)))]
			if n, err := r.ReadAt(b, begin); n < len(b) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				yield(Record{}, fmt.Errorf("read log at %d: %w", begin, err))
				return
			}
			found = found[:0]
			for off := 0; ; {
				f, skip, n, err := parseFrame(b[off:])
				off += skip
				if err != nil || begin+int64(off) >= end {
					break
				}
				if rec, ok := record(f, begin+int64(off), begin+int64(off+n)); ok {
					found = append(found, rec)
				}
				off += n
			}
			for i := len(found) - 1; i >= 0; i-- {
				if !yield(found[i], nil) {
					return
				}
			}
			end = begin
		}
	}
}
