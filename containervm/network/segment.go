package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Segment is an Ethernet interface of this machine, on a wire that guests are on as well: on vSphere the port group for
// bridge networks. It carries frames between them and the gateways of a Fabric, which is given it as Options.Segment.
//
// All frames go out with the interface's own hardware address, for a vSwitch lets no other pass. The interface is the
// Segment's alone: this machine's kernel gets nothing of what comes in (see shut), so a guest reaches this machine by its
// gateway or not at all.
type Segment struct {
	name string
	mac  hardwareAddr
	mtu  int
	log  *slog.Logger
	file *os.File // packet(7) socket
	raw  syscall.RawConn
	open func() error // lets the kernel have what comes in, as before
	wg   sync.WaitGroup

	mu     sync.RWMutex
	closed bool
	taps   map[hardwareAddr]*tap
	// overhear is told the sender of an ARP message that comes from no guest that is dialled; nil is not at all.
	overhear func(mac hardwareAddr, ip netip.Addr)
}

// OpenSegment opens an interface of this machine and brings it up. It must have no address: what comes in is
// no longer this machine's. log is told what no caller is; nil is silent.
func OpenSegment(iface string, log *slog.Logger) (*Segment, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Segment{name: iface, log: log, taps: map[hardwareAddr]*tap{}}
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("open interface %s: %w", iface, err)
	}
	s.wg.Go(s.receive)
	return s, nil
}

func (s *Segment) begin() error {
	link, err := netlink.LinkByName(s.name)
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			return fmt.Errorf("it has address %s: bridge networks need an interface of their own", a.IPNet)
		}
	}
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != len(s.mac) {
		return errors.New("it is no Ethernet interface")
	}
	s.mac, s.mtu = hardwareAddr(attrs.HardwareAddr), attrs.MTU
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	if s.file, err = packetSocket(attrs.Index); err != nil {
		return err
	}
	if s.raw, err = s.file.SyscallConn(); err == nil {
		s.open, err = shut(link)
	}
	if err != nil {
		return errors.Join(err, s.file.Close())
	}
	return nil
}

// Close ends all connections and gives the interface back to the kernel.
func (s *Segment) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, t := range s.taps {
		t.end()
	}
	s.mu.Unlock()
	err := errors.Join(s.file.Close(), s.open())
	s.wg.Wait()
	return err
}

// packetSocket opens a socket for all frames of an interface, with what is to be known of their checksums.
func packetSocket(index int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	set := func(option, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_PACKET, option, value))
		}
	}
	set(unix.PACKET_VNET_HDR, 1)
	set(unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil { // room for a window or two of several guests
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueSize))
	}
	if err == nil { // neighbour discovery goes to groups
		err = os.NewSyscallError("setsockopt", unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_ALLMULTI}))
	}
	if err == nil {
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// listen has fn told the senders of ARP messages that come from no guest.
func (s *Segment) listen(fn func(hardwareAddr, netip.Addr)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overhear = fn
}

// receive gives guests' frames to their connections until the Segment is closed.
func (s *Segment) receive() {
	buf := make([]byte, offloadSize+headerSize+maxOffloaded)
	for {
		n, err := s.file.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil: // the socket tells once what happened to the interface
			s.log.Warn("read from interface", "interface", s.name, "error", err)
			continue
		case n < offloadSize+headerSize:
			continue
		}
		s.take(parseOffload(buf[:offloadSize]), buf[offloadSize:n])
	}
}

// take brings a frame to whose it is. It does not keep the frame.
func (s *Segment) take(o offload, frame []byte) {
	if dst := frameDst(frame); dst != s.mac && !dst.group() {
		return
	}
	src := frameSrc(frame)
	s.mu.RLock()
	t, overhear := s.taps[src], s.overhear
	s.mu.RUnlock()
	switch {
	case t != nil:
		if o.vouched() || sound(frame) {
			t.enqueue(frame)
		}
	case overhear != nil && frameType(frame) == etherARP && len(frame) >= headerSize+arpSize:
		overhear(src, netip.AddrFrom4([4]byte(frame[headerSize+14:headerSize+18])))
	}
}

// send has a frame of the gateway's go out. One that the interface has no room for is dropped, as Ethernet may.
func (s *Segment) send(frame []byte) error {
	o := offloadOf(frame, s.mtu)
	var err error
	rawErr := s.raw.Write(func(fd uintptr) bool {
		_, err = unix.Writev(int(fd), [][]byte{o.marshal(), frame})
		return err != unix.EAGAIN
	})
	if rawErr != nil {
		return rawErr
	}
	switch err {
	case nil, unix.ENOBUFS, unix.ENETDOWN, unix.ENXIO, unix.EMSGSIZE, unix.EINVAL:
		return nil
	}
	return os.NewSyscallError("writev", err)
}

// Dial returns the frames of the guest that has a hardware address, each after its length, 4 bytes big-endian: those that
// come from it to a gateway, or to all. What is written, in the same form, goes out to the wire. There is one
// connection at a time for a guest.
func (s *Segment) Dial(ctx context.Context, mac string) (net.Conn, error) {
	addr, err := parseMAC(mac)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errClosed
	case addr == s.mac:
		return nil, fmt.Errorf("network: %s is the address of interface %s itself", addr, s.name)
	case s.taps[addr] != nil:
		return nil, fmt.Errorf("network: the frames of %s on interface %s go to another", addr, s.name)
	}
	t := &tap{s: s, mac: addr, queue: make(chan []byte, queueFrames), ended: make(chan struct{})}
	s.taps[addr] = t
	return t, nil
}

// tap is a connection with one guest's frames.
type tap struct {
	s      *Segment
	mac    hardwareAddr
	queue  chan []byte  // frames after their length
	queued atomic.Int64 // bytes in queue
	ended  chan struct{}
	once   sync.Once

	reading sync.Mutex
	rest    []byte // of the frame that is being read; guarded by reading
	writing sync.Mutex
	unsent  []byte // the beginning of a frame; guarded by writing
}

func (t *tap) enqueue(frame []byte) {
	size := lengthSize + len(frame)
	if t.queued.Add(int64(size)) <= queueSize {
		select {
		case t.queue <- appendFrame(make([]byte, 0, size), frame):
			return
		default:
		}
	}
	t.queued.Add(-int64(size))
}

// begin has Read read a frame.
func (t *tap) begin(frame []byte) {
	t.queued.Add(-int64(len(frame)))
	t.rest = frame
}

// Read waits for a frame, and reads what more of them there is.
func (t *tap) Read(p []byte) (int, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	if len(t.rest) == 0 {
		select {
		case frame := <-t.queue:
			t.begin(frame)
		case <-t.ended:
			return 0, net.ErrClosed
		}
	}
	n := 0
	for {
		m := copy(p[n:], t.rest)
		n, t.rest = n+m, t.rest[m:]
		if len(t.rest) > 0 || n == len(p) {
			return n, nil
		}
		select {
		case frame := <-t.queue:
			t.begin(frame)
		default:
			return n, nil
		}
	}
}

func (t *tap) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	select {
	case <-t.ended:
		return 0, net.ErrClosed
	default:
	}
	b := p
	if len(t.unsent) > 0 {
		b = append(t.unsent, p...)
	}
	for len(b) >= lengthSize {
		size := int(binary.BigEndian.Uint32(b))
		if size < headerSize || size > headerSize+maxOffloaded {
			return 0, fmt.Errorf("network: a frame of %d bytes", size)
		}
		if len(b) < lengthSize+size {
			break
		}
		if err := t.s.send(b[lengthSize : lengthSize+size]); err != nil {
			return 0, fmt.Errorf("write to interface %s: %w", t.s.name, err)
		}
		b = b[lengthSize+size:]
	}
	t.unsent = append([]byte(nil), b...)
	return len(p), nil
}

func (t *tap) end() { t.once.Do(func() { close(t.ended) }) }

func (t *tap) Close() error {
	t.end()
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.s.taps[t.mac] == t {
		delete(t.s.taps, t.mac)
	}
	return nil
}

func (t *tap) LocalAddr() net.Addr  { return tapAddr(t.s.name) }
func (t *tap) RemoteAddr() net.Addr { return tapAddr(t.mac.String()) }

func (t *tap) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (t *tap) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (t *tap) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// tapAddr is an interface or a hardware address.
type tapAddr string

func (tapAddr) Network() string  { return "ethernet" }
func (a tapAddr) String() string { return string(a) }
