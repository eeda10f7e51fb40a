// Package telnet reads and writes the Telnet protocol (RFC 854, 855) with 8-bit data (RFC 856) in both directions, and knows the
// numbers of VMware's option for serial ports behind a proxy.
//
//	any byte but 255       data
//	255 255                the data byte 255
//	255 251..254 OPTION    WILL, WONT, DO, DONT
//	255 250 OPTION … 255 240   subnegotiation of an option; 255 within it is doubled too
//	255 240..249           a command
//
// VMware's option is described in "Using a Proxy with vSphere Virtual Serial Ports". The first byte of its subnegotiations is one
// of the numbers below; strings have no end mark but the subnegotiation's.
package telnet

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
)

// Commands.
const (
	SE   = 240
	NOP  = 241
	SB   = 250
	WILL = 251
	WONT = 252
	DO   = 253
	DONT = 254
	IAC  = 255
)

// Options.
const (
	Binary          = 0  // RFC 856
	Echo            = 1  // RFC 857
	SuppressGoAhead = 3  // RFC 858
	ComPort         = 44 // RFC 2217
	VMware          = 232
)

// Subnegotiations of the option VMware, from the VM's host unless said otherwise.
const (
	KnownSuboptions1  = 0 // numbers that the host knows
	KnownSuboptions2  = 1 // from the proxy, likewise
	UnknownSuboption1 = 2 // a number
	UnknownSuboption2 = 3 // from the proxy, likewise

	VMotionBegin    = 40 // sequence
	VMotionGoAhead  = 41 // from the proxy: sequence, secret
	VMotionNotNow   = 43 // from the proxy: sequence
	VMotionPeer     = 44 // sequence, secret
	VMotionPeerOK   = 45 // from the proxy: sequence
	VMotionComplete = 46 // sequence
	VMotionAbort    = 48

	DoProxy   = 70 // 'C' or 'S', service URI
	WillProxy = 71 // from the proxy
	WontProxy = 73 // from the proxy

	VCUUID          = 80 // "00 11 22 33 44 55 66 77-88 99 aa bb cc dd ee ff"
	GetVCUUID       = 81 // from the proxy, and so are the other Gets
	Name            = 82
	GetName         = 83
	BIOSUUID        = 84
	GetBIOSUUID     = 85
	LocationUUID    = 86
	GetLocationUUID = 87
)

// MaxSubnegotiation is how long a subnegotiation may be, without its option. The longest here is a service URI.
const MaxSubnegotiation = 2 << 10

var (
	errLong = fmt.Errorf("telnet: subnegotiation longer than %d bytes", MaxSubnegotiation)
	errOpen = errors.New("telnet: command within a subnegotiation")
)

// A Kind is what an Event is.
type Kind int

// Kinds of events.
const (
	Data           Kind = iota // Bytes
	Command                    // Verb
	Negotiation                // Verb, Option
	Subnegotiation             // Option, Bytes
)

// An Event is a piece of what the other side sends. Bytes are valid until the next one.
type Event struct {
	Kind   Kind
	Verb   byte
	Option byte
	Bytes  []byte
}

// A Decoder reads what the other side sends, cut anywhere. The zero value is at a stream's beginning.
type Decoder struct {
	state  state
	verb   byte
	option byte
	sub    []byte
	err    error
}

type state int

const (
	inData       state = iota
	inCommand          // after IAC
	inOption           // after WILL, WONT, DO, DONT
	inSubOption        // after SB
	inSub              // in a subnegotiation
	inSubCommand       // after IAC in it
)

// Decode yields the events in p, in order, and an error as the last if it breaks the protocol; nothing can be decoded after that.
// Adjacent data is one event. It overwrites p.
func (d *Decoder) Decode(p []byte) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		data := p[:0] // of what comes; never longer than what was read of p
		for d.err == nil {
			if d.state == inData {
				n := bytes.IndexByte(p, IAC)
				if n < 0 {
					n = len(p)
				}
				data, p = append(data, p[:n]...), p[n:]
			}
			if len(p) == 0 {
				if len(data) > 0 {
					yield(Event{Kind: Data, Bytes: data}, nil)
				}
				return
			}
			b := p[0]
			p = p[1:]
			if d.state == inCommand && b == IAC {
				data, d.state = append(data, b), inData
				continue
			}
			e, whole := d.next(b)
			if d.state != inData && d.state != inCommand || whole {
				if len(data) > 0 && !yield(Event{Kind: Data, Bytes: data}, nil) {
					return
				}
				data = p[:0]
			}
			if whole && !yield(e, nil) {
				return
			}
		}
		yield(Event{}, d.err)
	}
}

// next takes a byte that is no data, and tells whether it was an event's last.
func (d *Decoder) next(b byte) (Event, bool) {
	switch d.state {
	case inData: // b is IAC
		d.state = inCommand
	case inCommand:
		switch b {
		case WILL, WONT, DO, DONT:
			d.verb, d.state = b, inOption
		case SB:
			d.state = inSubOption
		default:
			d.state = inData
			return Event{Kind: Command, Verb: b}, true
		}
	case inOption:
		d.state = inData
		return Event{Kind: Negotiation, Verb: d.verb, Option: b}, true
	case inSubOption:
		d.option, d.sub, d.state = b, d.sub[:0], inSub
		if b == IAC {
			d.err = errOpen // an option of that number would need an extension (RFC 861)
		}
	case inSub:
		if b == IAC {
			d.state = inSubCommand
			break
		}
		d.add(b)
	case inSubCommand:
		switch b {
		case SE:
			d.state = inData
			return Event{Kind: Subnegotiation, Option: d.option, Bytes: d.sub}, true
		case IAC:
			d.state = inSub
			d.add(b)
		default:
			d.err = errOpen
		}
	}
	return Event{}, false
}

func (d *Decoder) add(b byte) {
	if len(d.sub) == MaxSubnegotiation {
		d.err = errLong
		return
	}
	d.sub = append(d.sub, b)
}

// AppendData appends data.
func AppendData(dst, p []byte) []byte {
	for {
		n := bytes.IndexByte(p, IAC)
		if n < 0 {
			return append(dst, p...)
		}
		dst = append(append(dst, p[:n+1]...), IAC)
		p = p[n+1:]
	}
}

// AppendNegotiation appends WILL, WONT, DO or DONT of an option.
func AppendNegotiation(dst []byte, verb, option byte) []byte {
	return append(dst, IAC, verb, option)
}

// AppendSubnegotiation appends a subnegotiation of an option.
func AppendSubnegotiation(dst []byte, option byte, p []byte) []byte {
	return append(AppendData(append(dst, IAC, SB, option), p), IAC, SE)
}

// AppendVMware appends a subnegotiation of VMware's option.
func AppendVMware(dst []byte, number byte, p ...byte) []byte {
	return AppendSubnegotiation(dst, VMware, append([]byte{number}, p...))
}
