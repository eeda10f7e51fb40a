package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	"vic/containervm"
)

const (
	// queueFrames is how many frames wait for a guest. A TCP window of some 256 KiB fits in.
	queueFrames = 256
	// batchSize is how many bytes are written to a guest at a time, if so many wait.
	batchSize = 64 << 10
)

// An Endpoint is one guest's place in a Network.
type Endpoint struct {
	n   *Network
	id  string
	ip  netip.Addr
	mac hardwareAddr
	dns []netip.Addr

	queue  chan []byte
	closed chan struct{}
	flows  *flows // out of and into the guest
	conns  *conns

	names []string // guarded by n.mu

	mu      sync.Mutex
	done    bool
	ports   []containervm.PortBinding
	serving io.Closer
	wg      sync.WaitGroup // publishers and connections; Add with mu held and not done
	closers []io.Closer    // listeners
}

func newEndpoint(n *Network, o containervm.JoinOptions, ip netip.Addr) *Endpoint {
	return &Endpoint{
		n: n, id: o.ID, ip: ip, mac: macOf(ip), dns: o.DNS,
		queue: make(chan []byte, queueFrames), closed: make(chan struct{}),
		flows: newFlows(maxFlows), conns: newConns(maxConns),
	}
}

// Info implements containervm.Endpoint.
func (e *Endpoint) Info() containervm.EndpointInfo {
	e.n.mu.RLock()
	names := slices.Clone(e.names)
	e.n.mu.RUnlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	return containervm.EndpointInfo{
		Network: Name, MAC: e.mac.String(), MTU: e.n.o.MTU,
		IP: netip.PrefixFrom(e.ip, e.n.pool.subnet.Bits()), Gateway: e.n.gateway,
		Ports: slices.Clone(e.ports), Names: names,
	}
}

// Rename implements containervm.Endpoint.
func (e *Endpoint) Rename(names []string) error {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.n.byIP[e.ip] != e {
		return errClosed
	}
	e.n.name(e, names)
	return nil
}

// start runs fn unless e is closed, and has Close wait for it.
func (e *Endpoint) start(fn func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return false
	}
	e.wg.Go(fn)
	return true
}

// Close implements containervm.Endpoint.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	if e.done {
		e.mu.Unlock()
		return nil
	}
	e.done = true
	close(e.closed)
	var errs []error
	for _, c := range e.closers {
		errs = append(errs, c.Close())
	}
	if e.serving != nil {
		_ = e.serving.Close() // Serve tells
	}
	e.mu.Unlock()
	e.flows.close()
	e.conns.close()
	e.wg.Wait()
	e.n.remove(e)
	return errors.Join(errs...)
}

// enqueue has the guest sent a frame, or drops it. It does not wait, and keeps the frame.
func (e *Endpoint) enqueue(frame []byte) {
	select {
	case e.queue <- frame:
	default:
	}
}

// Serve implements containervm.Endpoint. One connection is served at a time.
func (e *Endpoint) Serve(conn io.ReadWriteCloser) error {
	e.mu.Lock()
	if e.done || e.serving != nil {
		e.mu.Unlock()
		_ = conn.Close() // it was not used
		return errors.New("network: endpoint is closed, or serves another connection")
	}
	e.serving = conn
	e.mu.Unlock()

	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := e.writeFrames(conn, stop); err != nil {
			_ = conn.Close() // which the reader sees
		}
	})
	err := e.readFrames(conn)
	close(stop)
	closeErr := conn.Close()
	writer.Wait()

	e.mu.Lock()
	e.serving = nil
	done := e.done
	e.mu.Unlock()
	if done {
		return nil
	}
	return errors.Join(err, closeErr)
}

func (e *Endpoint) readFrames(conn io.Reader) error {
	r := bufio.NewReaderSize(conn, batchSize)
	limit := uint32(e.n.o.MTU + headerSize)
	for {
		var length [lengthSize]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return fmt.Errorf("read frame: %w", err)
		}
		size := binary.BigEndian.Uint32(length[:])
		if size > limit+maxPadding {
			return fmt.Errorf("network: guest sent a frame of %d bytes", size)
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(r, frame); err != nil {
			return fmt.Errorf("read frame: %w", err)
		}
		if size <= limit && check(frame, e.mac, e.ip) {
			e.n.forward(e, frame)
		}
	}
}

// maxPadding is what a frame may be too long before it looks as if the stream were out of step:
// a VLAN tag or two.
const maxPadding = 16

func (e *Endpoint) writeFrames(conn io.Writer, stop <-chan struct{}) error {
	batch := make([]byte, 0, batchSize+e.n.o.MTU+headerSize+lengthSize)
	for {
		select {
		case f := <-e.queue:
			batch = appendFrame(batch[:0], f)
		case <-stop:
			return nil
		}
	more:
		for len(batch) < batchSize {
			select {
			case f := <-e.queue:
				batch = appendFrame(batch, f)
			default:
				break more
			}
		}
		if _, err := conn.Write(batch); err != nil {
			return err
		}
	}
}

func appendFrame(b, frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(frame))), frame...)
}
