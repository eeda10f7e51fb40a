package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// sampleLog makes a log of n records with awkward payloads of at most size
// bytes, and the records.
func sampleLog(rnd *rand.Rand, n, size int) ([]byte, []Record) {
	var log []byte
	var recs []Record
	for i := range n {
		var data []byte
		switch rnd.IntN(5) {
		case 0: // a log within a log
			data = append(data, log[:min(len(log), rnd.IntN(size))]...)
		case 1:
			data = bytes.Repeat(magic, rnd.IntN(size/4))
		case 2:
			data = bytes.Repeat(magic[:3], size/3)
		default:
			data = make([]byte, rnd.IntN(min(size, 200)))
			for j := range data {
				data[j] = magic[rnd.IntN(4)]
			}
		}
		r := Record{Type: RecordType(1 + i%5), Time: time.Unix(0, int64(i)*1e9), Data: data, Offset: int64(len(log))}
		log = AppendRecord(log, r.Type, r.Time, data)
		r.End = int64(len(log))
		recs = append(recs, r)
	}
	return log, recs
}

func equal(a, b Record) bool {
	return a.Type == b.Type && a.Time.Equal(b.Time) && bytes.Equal(a.Data, b.Data) && a.Offset == b.Offset && a.End == b.End
}

func forward(t *testing.T, r io.Reader, off int64) ([]Record, *LogReader) {
	t.Helper()
	l := NewLogReader(r, off)
	var out []Record
	for {
		rec, err := l.Next()
		if err == io.EOF {
			return out, l
		}
		if err != nil {
			t.Fatal(err)
		}
		rec.Data = bytes.Clone(rec.Data)
		out = append(out, rec)
	}
}

func backward(t *testing.T, b []byte) []Record {
	t.Helper()
	var out []Record
	for rec, err := range Backward(bytes.NewReader(b), int64(len(b))) {
		if err != nil {
			t.Fatal(err)
		}
		rec.Data = bytes.Clone(rec.Data)
		out = append(out, rec)
	}
	slices.Reverse(out)
	return out
}

func TestLog(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	log, want := sampleLog(rnd, 100, MaxPayload)
	got, l := forward(t, bytes.NewReader(log), 0)
	if !slices.EqualFunc(got, want, equal) {
		t.Errorf("read %d records that are not the %d written", len(got), len(want))
	}
	if l.Skipped() != 0 || l.Offset() != int64(len(log)) {
		t.Errorf("skipped %d, at %d of %d", l.Skipped(), l.Offset(), len(log))
	}
	if got := backward(t, log); !slices.EqualFunc(got, want, equal) {
		t.Errorf("read %d records backward that are not the %d written", len(got), len(want))
	}
	// From any offset, reading begins with the first record at or after it.
	for range 40 {
		off := rnd.Int64N(int64(len(log)))
		got, _ := forward(t, bytes.NewReader(log[off:]), off)
		i := slices.IndexFunc(want, func(r Record) bool { return r.Offset >= off })
		rest := []Record{}
		if i >= 0 {
			rest = want[i:]
		}
		if !slices.EqualFunc(got, rest, equal) {
			t.Fatalf("from %d: read %d records, want %d", off, len(got), len(rest))
		}
	}
}

// A record torn off by a killed VM costs itself only, not the first records of the
// boot that follows; and a bit that flipped costs one record.
func TestLogDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	first, a := sampleLog(rnd, 20, 2000)
	second, b := sampleLog(rnd, 20, 2000)
	for range 200 {
		cut := rnd.IntN(len(first) + 1)
		log := append(bytes.Clone(first[:cut]), second...)
		var want []Record
		for _, r := range a {
			if r.End <= int64(cut) {
				want = append(want, r)
			}
		}
		for _, r := range b {
			r.Offset += int64(cut)
			r.End += int64(cut)
			want = append(want, r)
		}
		got, _ := forward(t, bytes.NewReader(log), 0)
		if !slices.EqualFunc(got, want, equal) {
			t.Fatalf("cut at %d: read %d records, want %d", cut, len(got), len(want))
		}
		if got := backward(t, log); !slices.EqualFunc(got, want, equal) {
			t.Fatalf("cut at %d: read %d records backward, want %d", cut, len(got), len(want))
		}
	}
	for range 200 {
		log := bytes.Clone(first)
		at := rnd.IntN(len(log))
		log[at] ^= 1 << rnd.IntN(8)
		want := slices.DeleteFunc(slices.Clone(a), func(r Record) bool {
			return r.Offset <= int64(at) && int64(at) < r.End
		})
		if got, _ := forward(t, bytes.NewReader(log), 0); !slices.EqualFunc(got, want, equal) {
			t.Fatalf("bit flipped at %d: read %d records, want %d", at, len(got), len(want))
		}
	}
}

// A record that lost the beginning of a magic at its end has it completed by the magic of the one after, to
// the right checksum even. It is lost, and the one after is not.
func TestLogTornAtMagic(t *testing.T) {
	for lost := 1; lost < len(magic)-1; lost++ {
		torn := AppendRecord(nil, Stdout, time.Unix(1, 0), append([]byte("text"), magic[:lost]...))
		log := AppendRecord(torn[:len(torn)-lost], RecStarted, time.Unix(2, 0), []byte("{}"))
		got, _ := forward(t, bytes.NewReader(log), 0)
		if len(got) != 1 || got[0].Type != RecStarted {
			t.Errorf("%d bytes lost: read %v", lost, got)
		}
		if got := backward(t, log); len(got) != 1 || got[0].Type != RecStarted {
			t.Errorf("%d bytes lost: read %v backward", lost, got)
		}
	}
}

// growing is a file that grows between reads.
type growing struct{ b []byte }

func (g *growing) Read(p []byte) (int, error) {
	if len(g.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, g.b)
	g.b = g.b[n:]
	return n, nil
}

func TestLogFollow(t *testing.T) {
	log, want := sampleLog(rand.New(rand.NewPCG(1, 1)), 50, MaxPayload)
	g := new(growing)
	l := NewLogReader(g, 0)
	var got []Record
	for len(log) > 0 {
		n := min(len(log), 1000)
		g.b, log = log[:n], log[n:]
		for {
			rec, err := l.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			rec.Data = bytes.Clone(rec.Data)
			got = append(got, rec)
		}
	}
	if !slices.EqualFunc(got, want, equal) {
		t.Errorf("followed %d records, want %d", len(got), len(want))
	}
}

func TestPayloads(t *testing.T) {
	started := AppendRecord(nil, RecStarted, time.Now(), []byte(`{"pid":7,"kernel":"6.1"}`))
	exit := AppendRecord(nil, RecExit, time.Now(), []byte(`{"code":137,"signal":9,"oom":true}`))
	recs, _ := forward(t, bytes.NewReader(append(started, exit...)), 0)
	if s, err := recs[0].Started(); err != nil || s.PID != 7 || s.Kernel != "6.1" {
		t.Errorf("Started = %+v, %v", s, err)
	}
	if e, err := recs[1].Exit(); err != nil || e != (Exit{Code: 137, Signal: 9, OOM: true}) {
		t.Errorf("Exit = %+v, %v", e, err)
	}
	if _, err := recs[0].Exit(); err == nil {
		t.Error("a start passed for an exit")
	}
	if _, err := recs[1].Started(); err == nil {
		t.Error("an exit passed for a start")
	}
	if _, err := (Record{Type: RecExit, Data: []byte("{")}).Exit(); err == nil {
		t.Error("broken JSON passed for an exit")
	}
}

func TestBackwardReadError(t *testing.T) {
	for _, err := range Backward(bytes.NewReader(make([]byte, 10)), 20) {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	}
}

func FuzzLog(f *testing.F) {
	log, _ := sampleLog(rand.New(rand.NewPCG(1, 2)), 10, 60)
	f.Add(log)
	f.Add(log[:len(log)-1])
	f.Add(AppendRecord(nil, Stdout, time.Unix(0, 0), magic))
	f.Add(append(AppendRecord(nil, Stdout, time.Unix(0, 0), []byte("x"))[:30], log...))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, l := forward(t, bytes.NewReader(bytes.Clone(b)), 0)
		for _, r := range recs {
			if again := appendFrame(nil, frame{typ: byte(r.Type), sum: sum(b[r.Offset+5]), stamp: uint64(r.Time.UnixNano()), payload: r.Data}); !bytes.Equal(again, b[r.Offset:r.End]) {
				t.Errorf("record at %d: read %x, writes %x", r.Offset, b[r.Offset:r.End], again)
			}
		}
		if l.Offset() > int64(len(b)) || l.Skipped() > l.Offset() {
			t.Errorf("at %d with %d skipped of %d", l.Offset(), l.Skipped(), len(b))
		}
		if back := backward(t, b); !slices.EqualFunc(back, recs, equal) {
			t.Errorf("%d records forward, %d backward", len(recs), len(back))
		}
	})
}

// TestSums reads records as guests of other versions write them.
func TestSums(t *testing.T) {
	for _, c := range []struct {
		name  string
		sum   sum
		whole bool
	}{{"CRC32C", sumCRC32C, true}, {"XXH64", sumXXH64, true}, {"one that is not known", sumXXH64 + 1, false}} {
		t.Run(c.name, func(t *testing.T) {
			log := appendFrame(nil, frame{typ: byte(Stdout), sum: c.sum, stamp: 7, payload: []byte("text")})
			rec, err := NewLogReader(bytes.NewReader(log), 0).Next()
			if !c.whole {
				if err != io.EOF {
					t.Errorf("%+v, %v", rec, err)
				}
				return
			}
			if err != nil || string(rec.Data) != "text" {
				t.Errorf("%+v, %v", rec, err)
			}
			log[len(log)-1] ^= 1
			if rec, err := NewLogReader(bytes.NewReader(log), 0).Next(); err != io.EOF {
				t.Errorf("damaged: %+v, %v", rec, err)
			}
		})
	}
}

func BenchmarkLog(b *testing.B) {
	data := make([]byte, MaxPayload)
	rand.NewChaCha8([32]byte{}).Read(data)
	log := AppendRecord(nil, Stdout, time.Now(), data)
	b.Run("append", func(b *testing.B) {
		b.SetBytes(MaxPayload)
		b.ReportAllocs()
		for b.Loop() {
			log = AppendRecord(log[:0], Stdout, time.Now(), data)
		}
	})
	log = bytes.Repeat(log, 64)
	b.Run("read", func(b *testing.B) {
		b.SetBytes(64 * MaxPayload)
		b.ReportAllocs()
		for b.Loop() {
			l := NewLogReader(bytes.NewReader(log), 0)
			for range 64 {
				if _, err := l.Next(); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// What a host sends must not upset a guest, nor the other way round.
func FuzzControl(f *testing.F) {
	var sent bytes.Buffer
	s := newSession(&sent, 7, minWindow)
	s.send(frameHello, 0, fmt.Appendf(nil, `{"version":1,"token":"secret","window":%d}`, minWindow))
	msg, err := encodeMessage(call{Number: 1, Request: Request{Op: OpExec, Exec: &Exec{ID: "a", Args: []string{"cat"}}, Channel: 2}})
	if err != nil {
		f.Fatal(err)
	}
	s.send(frameData, 0, msg)
	s.send(frameData, 2, []byte("hello"))
	s.send(frameCredit, 2, []byte{1, 0, 0, 0})
	s.send(frameEnd, 2, nil)
	s.send(frameDrop, 3, nil)
	s.send(frameHello, 0, []byte(`{"version":1,"token":"guess"}`))
	s.send(frameLost, 0, nil)
	f.Add(sent.Bytes())
	f.Add(sent.Bytes()[:sent.Len()-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newGuest()
		g.begun = make(chan *Channel, len(b)/headerSize+1)
		v := &Server{ID: "c1", Token: "secret", Handler: g}
		port := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(bytes.Clone(b)), io.Discard}
		if err := v.Serve(port); err != io.EOF {
			t.Errorf("Serve: %v", err)
		}
		g.wg.Wait()

		// The same bytes as a guest's.
		h := newSession(io.Discard, 7, minWindow)
		c, err := h.open(messageChannel)
		if err != nil {
			t.Fatal(err)
		}
		fr := newFrameReader(bytes.NewReader(bytes.Clone(b)))
		for {
			f, _, err := fr.next()
			if err != nil || h.handle(f) != nil {
				break
			}
		}
		h.fail(ErrLost)
		var a answer
		for readMessage(c, &a) == nil {
		}
	})
}
