package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"vic/containervm"
)

const (
	// queueFrames is how many frames wait for a guest, and queueSize how many bytes. The gateway's largest TCP window
	// fits in.
	queueFrames = 1024
	queueSize   = 4 << 20
	// batchSize is how many bytes are written to a guest at a time, if so many wait.
	batchSize = 64 << 10
)

// An Endpoint is one guest's place in a Network.
type Endpoint struct {
	n         *Network
	container string
	ip, ip6   netip.Addr // ip6 is invalid without IPv6
	mac       hardwareAddr
	local6    netip.Addr        // made from mac
	links     map[string]string // names of endpoints by alias, in lower case
	dns       []netip.Addr

	queue  chan []byte
	queued atomic.Int64 // bytes in queue
	closed chan struct{}
	flows  *flows // out of and into the guest
	conns  *conns

	names []string // guarded by n.mu

	mu      sync.Mutex
	done    bool
	serving io.Closer
	wg      sync.WaitGroup // connections; Add with mu held and not done

	publishing sync.Mutex // held by Publish; before mu
	listening  *listening // guarded by mu; nil if nothing is published
}

func newEndpoint(n *Network, o containervm.JoinOptions) *Endpoint {
	e := &Endpoint{
		n: n, container: o.Container, dns: o.DNS, links: map[string]string{},
		queue: make(chan []byte, queueFrames), closed: make(chan struct{}),
		flows: newFlows(maxFlows), conns: newConns(maxConns),
	}
	for alias, name := range o.Links {
		e.links[strings.ToLower(alias)] = strings.ToLower(name)
	}
	return e
}

// addrs are all that the endpoint's frames may come from, and go to.
func (e *Endpoint) addrs() []netip.Addr {
	if !e.ip6.IsValid() {
		return []netip.Addr{e.ip}
	}
	return []netip.Addr{e.ip, e.ip6, e.local6}
}

// Info implements containervm.Endpoint.
func (e *Endpoint) Info() containervm.EndpointInfo {
	e.n.mu.RLock()
	names := slices.Clone(e.names)
	e.n.mu.RUnlock()
	i := containervm.EndpointInfo{
		Network: e.n.conf.Name, NetworkID: e.n.conf.ID, MAC: e.mac.String(), MTU: e.n.mtu,
		IP: netip.PrefixFrom(e.ip, e.n.pool.subnet.Bits()), Gateway: e.n.gateway, Names: names,
	}
	if e.n.wired {
		i.GatewayMAC = e.n.mac.String()
	}
	if e.ip6.IsValid() {
		i.IP6, i.Gateway6 = netip.PrefixFrom(e.ip6, e.n.pool6.subnet.Bits()), e.n.gateway6
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listening != nil {
		i.Ports = slices.Clone(e.listening.ports)
	}
	return i
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
	if e.serving != nil {
		_ = e.serving.Close() // Serve tells
	}
	e.mu.Unlock()
	err := e.Publish(nil)
	e.flows.close()
	e.conns.close()
	e.wg.Wait()
	e.n.remove(e)
	return err
}

// enqueue has the guest sent a frame, or drops it. It does not wait, and keeps the frame.
func (e *Endpoint) enqueue(frame []byte) {
	if e.queued.Add(int64(len(frame))) <= queueSize {
		select {
		case e.queue <- frame:
			return
		default:
		}
	}
	e.queued.Add(-int64(len(frame)))
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

	if e.n.wired {
		for _, frame := range e.announcements() {
			e.enqueue(frame)
		}
	}
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
	limit := uint32(e.n.mtu + headerSize)
	if e.n.wired { // where adapters put packets together
		limit = maxOffloaded + headerSize
	}
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
		if size <= limit && e.check(frame) {
			e.n.forward(e, frame)
		}
	}
}

// maxPadding is what a frame may be too long before it looks as if the stream were out of step:
// a VLAN tag or two.
const maxPadding = 16

func (e *Endpoint) writeFrames(conn io.Writer, stop <-chan struct{}) error {
	batch := make([]byte, 0, batchSize+e.n.mtu+headerSize+lengthSize)
	for {
		frames := 1
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
				frames++
			default:
				break more
			}
		}
		e.queued.Add(int64(frames*lengthSize - len(batch)))
		if _, err := conn.Write(batch); err != nil {
			return err
		}
	}
}

func appendFrame(b, frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(frame))), frame...)
}
