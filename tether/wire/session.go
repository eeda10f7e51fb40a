package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	frameHello  = 16
	frameData   = 17
	frameCredit = 18
	frameEnd    = 19
	frameDrop   = 20
	frameLost   = 21

	frameReady = 26 // 22 to 25 are a template's
)

const (
	// DefaultWindow is how many bytes may be under way on a channel in one direction.
	DefaultWindow = 256 << 10
	// MaxChannels is how many channels a session may have open at a time.
	MaxChannels = 512

	minWindow = 1 << 10
	maxWindow = 1 << 20
	// hostChunk and guestChunk are the most data put into one frame. A virtio-serial port gives
	// a guest at most 4 KiB with each read, so frames of that size need no second one and no copying;
	// what a guest writes the host takes in any size.
	hostChunk  = 4096 - headerSize
	guestChunk = MaxPayload
)

const (
	messageChannel = 0
	stdinChannel   = 1
	firstExec      = 2
)

// ErrLost is returned by everything that belongs to a session which has ended:
// the other side vanished, bytes were lost on the way, or a new session began.
var ErrLost = errors.New("wire: session lost")

// ErrProtocol is, with ErrLost, the error of a session whose other side did what no tether and no host does. A
// line that loses bytes does not do that to a session.
var ErrProtocol = errors.New("wire: protocol broken")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %w", ErrLost, ErrProtocol, fmt.Errorf(format, args...))
}

// session is one side of a control session: numbering of frames and channels.
type session struct {
	id     uint32
	window int
	chunk  int           // of this side's frames
	done   chan struct{} // closed once err is set

	wmu  sync.Mutex // held across Write
	w    io.Writer
	wbuf []byte
	sent uint32 // sequence number of the last frame

	received uint32 // likewise; used by the one goroutine that calls handle

	mu       sync.Mutex
	err      error
	channels map[uint16]*Channel
}

func newSession(w io.Writer, id uint32, window int) *session {
	return &session{id: id, window: window, chunk: hostChunk, w: w, done: make(chan struct{}), channels: map[uint16]*Channel{}}
}

func (s *session) send(typ byte, channel uint16, payload []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	select {
	case <-s.done:
		return s.failure()
	default:
	}
	s.sent++
	s.wbuf = appendFrame(s.wbuf[:0], frame{typ: typ, channel: channel, stamp: uint64(s.id)<<32 | uint64(s.sent), payload: payload})
	if _, err := s.w.Write(s.wbuf); err != nil {
		return s.fail(fmt.Errorf("%w: write: %w", ErrLost, err))
	}
	return nil
}

// sayAgain sends the session's first frame once more. Call it before any other is sent.
func (s *session) sayAgain(typ byte, payload []byte) error {
	s.wmu.Lock()
	s.sent = 0
	s.wmu.Unlock()
	return s.send(typ, 0, payload)
}

// fail ends the session for everybody and returns why it ended.
func (s *session) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.done)
		for _, c := range s.channels {
			c.wake.Broadcast()
		}
	}
	return s.err
}

// tellLost lets the other side know that this one has given the session up.
func (s *session) tellLost() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	// A failure to write is the transport's end, which the reader sees too.
	_, _ = s.w.Write(appendFrame(nil, frame{typ: frameLost, stamp: uint64(s.id) << 32}))
}

func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// numbered checks that f is the next frame of the session.
func (s *session) numbered(f frame) error {
	s.received++
	if n := uint32(f.stamp); n != s.received {
		return fmt.Errorf("%w: frame %d came where %d was due", ErrLost, n, s.received)
	}
	return nil
}

// handle takes in a frame of this session other than a hello. It does not wait
// for anything. An error is the end of the session.
func (s *session) handle(f frame) error {
	if f.typ == frameLost {
		return fmt.Errorf("%w: the other side missed a frame", ErrLost)
	}
	if err := s.numbered(f); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[f.channel]
	if c == nil {
		return nil // of a channel this side has done with, or refused
	}
	switch f.typ {
	case frameData:
		if len(f.payload) > s.window-c.unread() || c.peerEnded {
			return broken("channel %d was sent more than its credit", f.channel)
		}
		if !c.dropped {
			c.push(f.payload)
		}
	case frameCredit:
		if len(f.payload) != 4 {
			return broken("credit of %d bytes", len(f.payload))
		}
		n := binary.LittleEndian.Uint32(f.payload)
		if int64(n) > int64(s.window-c.credit) {
			return broken("channel %d was given more credit than its window", f.channel)
		}
		c.credit += int(n)
	case frameEnd:
		c.peerEnded = true
		s.release(c)
	case frameDrop:
		c.peerDropped = true
	default:
		return broken("frame of type %d", f.typ)
	}
	c.wake.Broadcast()
	return nil
}

// open makes a channel. Both sides do so before the first data.
func (s *session) open(number uint16) (*Channel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.channels[number] != nil {
		return nil, fmt.Errorf("wire: channel %d is in use", number)
	}
	if len(s.channels) >= MaxChannels {
		return nil, fmt.Errorf("wire: more than %d channels", MaxChannels)
	}
	c := &Channel{s: s, number: number, credit: s.window}
	c.wake.L = &s.mu
	s.channels[number] = c
	return c, nil
}

// forget undoes open for a channel that the other side knows nothing of.
func (s *session) forget(c *Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.channels, c.number)
}

// release forgets c when both sides have sent end. Call it with mu held.
func (s *session) release(c *Channel) {
	if c.endSent && c.peerEnded {
		delete(s.channels, c.number)
	}
}

// Channel is a flow-controlled byte stream in both directions within a control
// session. Its methods may be called from several goroutines. All fail with
// ErrLost once the session is over, except that Read first returns what had come.
type Channel struct {
	s      *session
	number uint16

	writing sync.Mutex // held by a Write, and to send end after it; taken before s.mu

	wake sync.Cond // L is s.mu, which guards all below

	data        []byte // what came and was not read: data[read:]
	read        int
	owed        int  // bytes read and not given back as credit
	credit      int  // bytes this side may send
	ended       bool // no further Write
	endSent     bool
	dropped     bool // no further Read
	peerEnded   bool
	peerDropped bool
}

// unread is how much of the window the peer has used up.
func (c *Channel) unread() int { return len(c.data) - c.read + c.owed }

func (c *Channel) push(p []byte) {
	if c.read > 0 && len(c.data)+len(p) > cap(c.data) {
		c.data = c.data[:copy(c.data, c.data[c.read:])]
		c.read = 0
	}
	c.data = append(c.data, p...)
}

// Err is nil while the channel's session lasts, and then why it ended.
func (c *Channel) Err() error { return c.s.failure() }

// Read reads what the other side wrote. io.EOF comes after it called CloseWrite.
func (c *Channel) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.s.mu.Lock()
	for c.read == len(c.data) && !c.peerEnded && !c.dropped && c.s.err == nil {
		c.wake.Wait()
	}
	if c.read == len(c.data) {
		defer c.s.mu.Unlock()
		switch {
		case c.dropped:
			return 0, io.ErrClosedPipe
		case c.peerEnded:
			return 0, io.EOF
		}
		return 0, c.s.err
	}
	n := copy(p, c.data[c.read:])
	c.read += n
	if c.read == len(c.data) {
		c.data, c.read = c.data[:0], 0
	}
	c.owed += n
	give := 0
	if c.owed >= c.s.window/4 && !c.peerEnded {
		give, c.owed = c.owed, 0
	}
	c.s.mu.Unlock()
	if give > 0 {
		// If it fails the session is over, which the next call will tell.
		_ = c.s.send(frameCredit, c.number, binary.LittleEndian.AppendUint32(nil, uint32(give)))
	}
	return n, nil
}

// Write sends p, waiting for the other side to read where its window is full.
// If the other side no longer reads the error is io.ErrClosedPipe.
func (c *Channel) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for done := 0; ; {
		c.s.mu.Lock()
		for c.credit == 0 && done < len(p) && !c.ended && !c.peerDropped && c.s.err == nil {
			c.wake.Wait()
		}
		switch {
		case c.s.err != nil:
			c.s.mu.Unlock()
			return done, c.s.err
		case c.ended || c.peerDropped:
			c.s.mu.Unlock()
			return done, io.ErrClosedPipe
		case done == len(p):
			c.s.mu.Unlock()
			return done, nil
		}
		n := min(len(p)-done, c.s.chunk, c.credit)
		c.credit -= n
		c.s.mu.Unlock()
		if err := c.s.send(frameData, c.number, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
}

// CloseWrite says that this side writes no more. The other side's Read returns
// io.EOF when it has read the rest.
func (c *Channel) CloseWrite() error {
	c.s.mu.Lock()
	if c.ended {
		c.s.mu.Unlock()
		return nil
	}
	c.ended = true
	c.wake.Broadcast() // a Write that waits gives up
	c.s.mu.Unlock()
	c.writing.Lock()
	defer c.writing.Unlock()
	err := c.s.send(frameEnd, c.number, nil)
	c.s.mu.Lock()
	c.endSent = true
	c.s.release(c)
	c.s.mu.Unlock()
	return err
}

// CloseRead says that this side reads no more. What comes is thrown away, and
// the other side's Write fails with io.ErrClosedPipe.
func (c *Channel) CloseRead() error {
	c.s.mu.Lock()
	tell := !c.dropped && !c.peerEnded
	c.dropped = true
	c.data, c.read = nil, 0
	c.wake.Broadcast()
	c.s.mu.Unlock()
	if !tell {
		return nil
	}
	return c.s.send(frameDrop, c.number, nil)
}

// Close is CloseRead and CloseWrite.
func (c *Channel) Close() error {
	return errors.Join(c.CloseRead(), c.CloseWrite())
}
