package telnet

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// decode decodes what comes in pieces of n bytes, and joins what was cut.
func decode(in []byte, n int) (events []Event, whole bool, err error) {
	var d Decoder
	for in = bytes.Clone(in); len(in) > 0; in = in[min(n, len(in)):] {
		for e, err := range d.Decode(in[:min(n, len(in))]) {
			if err != nil {
				return events, false, err
			}
			e.Bytes = bytes.Clone(e.Bytes)
			if last := len(events) - 1; e.Kind == Data && last >= 0 && events[last].Kind == Data {
				events[last].Bytes = append(events[last].Bytes, e.Bytes...)
				continue
			}
			events = append(events, e)
		}
	}
	return events, d.state == inData, nil
}

func encode(events []Event) []byte {
	var b []byte
	for _, e := range events {
		switch e.Kind {
		case Data:
			b = AppendData(b, e.Bytes)
		case Command:
			b = append(b, IAC, e.Verb)
		case Negotiation:
			b = AppendNegotiation(b, e.Verb, e.Option)
		case Subnegotiation:
			b = AppendSubnegotiation(b, e.Option, e.Bytes)
		}
	}
	return b
}

func (e Event) String() string {
	return fmt.Sprintf("%d %d %d %q", e.Kind, e.Verb, e.Option, e.Bytes)
}

func TestDecode(t *testing.T) {
	for name, x := range map[string]struct {
		in   string
		want []Event
		err  error
	}{
		"data":           {in: "a\x00\r\nb", want: []Event{{Kind: Data, Bytes: []byte("a\x00\r\nb")}}},
		"escape":         {in: "a\xff\xffb\xff\xff", want: []Event{{Kind: Data, Bytes: []byte("a\xffb\xff")}}},
		"command":        {in: "a\xff\xf1b", want: []Event{{Kind: Data, Bytes: []byte("a")}, {Kind: Command, Verb: NOP}, {Kind: Data, Bytes: []byte("b")}}},
		"negotiation":    {in: "\xff\xfb\xe8\xff\xfe\xff", want: []Event{{Kind: Negotiation, Verb: WILL, Option: VMware}, {Kind: Negotiation, Verb: DONT, Option: 255}}},
		"subnegotiation": {in: "x\xff\xfa\xe8\x46Cvic\xff\xff\xff\xf0y", want: []Event{{Kind: Data, Bytes: []byte("x")}, {Kind: Subnegotiation, Option: VMware, Bytes: []byte("FCvic\xff")}, {Kind: Data, Bytes: []byte("y")}}},
		"empty":          {in: "\xff\xfa\x2c\xff\xf0", want: []Event{{Kind: Subnegotiation, Option: ComPort, Bytes: nil}}},
		"cut":            {in: "\xff\xfa\xe8\x46Cvic", want: nil},
		"command within": {in: "\xff\xfa\xe8\xff\xf1", err: errOpen},
		"too long":       {in: "\xff\xfa\xe8" + strings.Repeat("x", MaxSubnegotiation+1), err: errLong},
		"longest":        {in: "\xff\xfa\xe8" + strings.Repeat("x", MaxSubnegotiation) + "\xff\xf0", want: []Event{{Kind: Subnegotiation, Option: VMware, Bytes: bytes.Repeat([]byte("x"), MaxSubnegotiation)}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1, 2, 3, 1 << 20} {
				got, _, err := decode([]byte(x.in), n)
				if !errors.Is(err, x.err) || fmt.Sprint(got) != fmt.Sprint(x.want) {
					t.Errorf("in pieces of %d: got %v, %v; want %v, %v", n, got, err, x.want, x.err)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("a\xff\xff\xff\xf1\xff\xfd\xe8\xff\xfa\xe8\x46Cvic.control\xff\xff\xff\xf0z"), 3)
	f.Add([]byte("\xff\xfa\xe8\x00\x01\x02\x03\xff\xf0\xff\xfa\xe8\xff\xf1"), 1)
	f.Add([]byte("\xff\xf0\xff\xfa\xff"), 2)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		all, whole, err := decode(in, max(len(in), 1))
		cut, _, cutErr := decode(in, 1+max(n, 0)%64)
		if fmt.Sprint(all) != fmt.Sprint(cut) || err != cutErr {
			t.Fatalf("in one piece %v, %v; in several %v, %v", all, err, cut, cutErr)
		}
		for _, e := range all {
			if e.Kind == Subnegotiation && len(e.Bytes) > MaxSubnegotiation {
				t.Fatalf("a subnegotiation of %d bytes", len(e.Bytes))
			}
		}
		if again := encode(all); err == nil && whole && !bytes.Equal(again, in) {
			t.Fatalf("%q becomes %q", in, again)
		}
	})
}

// TestOptions has two sides agree, and one that contradicts itself.
func TestOptions(t *testing.T) {
	for name, x := range map[string]struct {
		o    Options
		say  []byte // verb, option, …
		want string
		us   agreement // of option 0 in the end
		them agreement
	}{
		"accepted":            {Options{Us: []byte{0}, Them: []byte{0}}, []byte{DO, 0, WILL, 0}, "", yes, yes},
		"refused":             {Options{Us: []byte{0}, Them: []byte{0}}, []byte{DONT, 0, WONT, 0}, "", no, no},
		"refused later":       {Options{Us: []byte{0}, Them: []byte{0}}, []byte{DO, 0, DONT, 0, DONT, 0}, "\xff\xfc\x00", no, asked},
		"asked for more":      {Options{Us: []byte{0}}, []byte{DO, 44, WILL, 44, WILL, 0}, "\xff\xfc\x2c\xff\xfe\x2c\xff\xfe\x00", asked, no},
		"accepted twice":      {Options{Us: []byte{0}, Them: []byte{0}}, []byte{DO, 0, DO, 0, WILL, 0, WILL, 0}, "", yes, yes},
		"changes its mind":    {Options{Them: []byte{0}}, []byte{WONT, 0, WILL, 0}, "\xff\xfd\x00", no, yes},
		"changes it back too": {Options{Us: []byte{0}}, []byte{DONT, 0, DO, 0, DONT, 0}, "\xff\xfb\x00\xff\xfc\x00", no, no},
	} {
		t.Run(name, func(t *testing.T) {
			x.o.Offer(nil)
			var got []byte
			for s := x.say; len(s) > 0; s = s[2:] {
				got = x.o.Receive(got, s[0], s[1])
			}
			if string(got) != x.want || x.o.us[0] != x.us || x.o.them[0] != x.them {
				t.Errorf("answered %q, want %q; state %d, %d", got, x.want, x.o.us[0], x.o.them[0])
			}
		})
	}
	t.Run("both offer", func(t *testing.T) {
		a, b := Options{Us: []byte{Binary, VMware}, Them: []byte{Binary}}, Options{Us: []byte{Binary}, Them: []byte{Binary, SuppressGoAhead, VMware}}
		toB, toA := a.Offer(nil), b.Offer(nil)
		for rounds := 0; len(toA)+len(toB) > 0; rounds++ {
			if rounds == 4 {
				t.Fatal("they do not come to an end")
			}
			toA, toB = answers(t, &b, toB), answers(t, &a, toA)
		}
		if a.us[VMware] != yes || b.them[VMware] != yes || a.them[Binary] != yes || b.them[Binary] != yes || a.us[SuppressGoAhead] != no || b.them[SuppressGoAhead] != no {
			t.Error("they did not agree")
		}
	})
}

// answers is what a side answers to in.
func answers(t *testing.T, o *Options, in []byte) []byte {
	t.Helper()
	var out []byte
	events, _, err := decode(in, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		out = o.Receive(out, e.Verb, e.Option)
	}
	return out
}
