package guestrpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
)

// A protocol is what a channel is opened for.
type protocol uint32

const (
	rpci protocol = 0x49435052 // "RPCI"
	tclo protocol = 0x4f4c4354 // "TCLO"

	withCookie = 1 << 31
)

const commandMessage = 30

// What is asked of a channel.
const (
	askOpen = iota
	askSendSize
	askSend
	askReceiveSize
	askReceive
	askReceived
	askClose
)

// A status is what comes of it.
type status uint16

const (
	statusDone       status = 0x01
	statusWaiting    status = 0x02 // there is a message for the guest
	statusCheckpoint status = 0x10 // the VM was saved, or moved, in the middle: begin again
	statusBulk       status = 0x80 // the payload may go by bulkPort
)

const (
	// maxSend is the longest message that the VMX takes.
	maxSend = 64 << 10
	// maxReceive bounds what the VMX may send: some 1 MiB, by VMware's documentation.
	maxReceive = 1<<20 + 4<<10
	// maxCheckpoints is how often one message is begun again.
	maxCheckpoints = 100
)

var errCheckpoint = errors.New("guestrpc: the VM was saved at each attempt")

// A channel carries messages to and from the VMX. It is one goroutine's.
type channel struct {
	id     uint32 // in the upper half
	si, di uint32 // the cookie
}

// open opens a channel, which is to be closed. Call this and all methods within withPorts.
func open(p protocol) (*channel, error) {
	var c channel
	r, st := c.ask(askOpen, uint32(p)|withCookie)
	if st&statusDone == 0 {
		return nil, fmt.Errorf("open channel: refused with status %#x", uint16(st))
	}
	return &channel{id: r.dx &^ 0xffff, si: r.si, di: r.di}, nil
}

// ask asks for one thing.
func (c *channel) ask(what, bx uint32) (registers, status) {
	r := registers{ax: magic, bx: bx, cx: what<<16 | commandMessage, dx: c.id | port, si: c.si, di: c.di}
	in(&r)
	return r, status(r.cx >> 16)
}

// expect is ask, and an error unless it was done.
func (c *channel) expect(what, bx uint32, doing string) (registers, status, error) {
	r, st := c.ask(what, bx)
	switch {
	case st&statusDone != 0:
		return r, st, nil
	case st&statusCheckpoint != 0:
		return r, st, errCheckpoint
	}
	return r, st, fmt.Errorf("%s: refused with status %#x", doing, uint16(st))
}

func (c *channel) close() error {
	_, _, err := c.expect(askClose, 0, "close channel")
	return err
}

// again calls f until no checkpoint comes between.
func again(f func() error) error {
	err := errCheckpoint
	for range maxCheckpoints {
		if err = f(); !errors.Is(err, errCheckpoint) {
			break
		}
	}
	return err
}

func (c *channel) send(p []byte) error {
	if len(p) > maxSend {
		return fmt.Errorf("guestrpc: message of %d bytes, at most %d may be sent", len(p), maxSend)
	}
	return again(func() error { return c.sendOnce(p) })
}

func (c *channel) sendOnce(p []byte) error {
	_, st, err := c.expect(askSendSize, uint32(len(p)), "send size of message")
	if err != nil || len(p) == 0 {
		return err
	}
	if st&statusBulk != 0 {
		r := registers{ax: magic, bx: uint32(statusDone) << 16, cx: uint32(len(p)), dx: c.id | bulkPort, di: c.di, bp: c.si}
		outBytes(&r, &p[0])
		runtime.KeepAlive(p)
		return bulkResult(r, "send message")
	}
	for len(p) > 0 {
		var word [4]byte
		p = p[copy(word[:], p):]
		if _, _, err := c.expect(askSend, binary.LittleEndian.Uint32(word[:]), "send message"); err != nil {
			return err
		}
	}
	return nil
}

// bulkResult is what came of a bulk transfer.
func bulkResult(r registers, doing string) error {
	st := status(r.bx >> 16)
	switch {
	case st&statusDone != 0:
		return nil
	case st&statusCheckpoint != 0:
		return errCheckpoint
	}
	return fmt.Errorf("%s: refused with status %#x", doing, uint16(st))
}

// receive returns the message that waits; nil if there is none.
func (c *channel) receive() ([]byte, error) {
	var p []byte
	err := again(func() (err error) {
		p, err = c.receiveOnce()
		return err
	})
	return p, err
}

func (c *channel) receiveOnce() ([]byte, error) {
	r, st, err := c.expect(askReceiveSize, 0, "ask for message")
	if err != nil || st&statusWaiting == 0 {
		return nil, err
	}
	if r.dx>>16 != askSendSize {
		return nil, fmt.Errorf("guestrpc: VMX answers a question for a size with %d", r.dx>>16)
	}
	size := r.bx
	if size > maxReceive {
		c.ask(askReceive, 0) // not received; whatever it says, this channel is given up
		return nil, fmt.Errorf("guestrpc: message of %d bytes, at most %d are taken", size, maxReceive)
	}
	p := make([]byte, size)
	if size > 0 {
		if err := c.receiveInto(p, st); err != nil {
			return nil, err
		}
	}
	_, _, err = c.expect(askReceived, uint32(statusDone), "confirm message")
	return p, err
}

func (c *channel) receiveInto(p []byte, st status) error {
	if st&statusBulk != 0 {
		r := registers{ax: magic, bx: uint32(statusDone) << 16, cx: uint32(len(p)), dx: c.id | bulkPort, si: c.si, bp: c.di}
		inBytes(&r, &p[0])
		runtime.KeepAlive(p)
		return bulkResult(r, "receive message")
	}
	for len(p) > 0 {
		r, _, err := c.expect(askReceive, uint32(statusDone), "receive message")
		if err != nil {
			return err
		}
		if r.dx>>16 != askSend {
			return fmt.Errorf("guestrpc: VMX answers a question for data with %d", r.dx>>16)
		}
		var word [4]byte
		binary.LittleEndian.PutUint32(word[:], r.bx)
		p = p[copy(p, word[:]):]
	}
	return nil
}
