package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// A listenPlan says where the API is to be reached, and how. Whoever reaches it is root on every
// container, so TCP beyond this machine needs certificates on both sides, unless open says otherwise.
type listenPlan struct {
	addresses []string // unix:///path or tcp://host:port
	open      bool     // let anybody in on any TCP address
	tls       bool     // TCP with TLS
	verify    bool     // and with clients' certificates
	files     certificateFiles
}

// An address is one of a plan's, taken apart.
type address struct {
	network, addr string // unix and a path, or tcp and host:port
}

// check takes the addresses apart and refuses what would be open to everybody.
func (p *listenPlan) check() ([]address, error) {
	p.tls = p.tls || p.verify
	switch {
	case !p.tls && (p.files.cert != "" || p.files.key != ""):
		return nil, usageErrorf("--tlscert and --tlskey are of no use without --tlsverify, or --tls")
	case !p.verify && p.files.ca != "":
		return nil, usageErrorf("--tlscacert says whose certificates clients may show: it needs --tlsverify")
	case p.verify && p.open:
		return nil, usageErrorf("--open-tcp contradicts --tlsverify")
	case len(p.addresses) == 0:
		return nil, usageErrorf("no --host address")
	}
	var out []address
	anyTCP := false
	for _, text := range p.addresses {
		a, err := p.parse(text)
		if err != nil {
			return nil, err
		}
		anyTCP = anyTCP || a.network == "tcp"
		if a.network == "tcp" && !p.verify && !p.open && !a.loopback() {
			return nil, usageErrorf("--host %s: anybody who reaches this address could run anything: give --tlsverify (vic certs makes certificates), or say --open-tcp", text)
		}
		out = append(out, a)
	}
	if p.tls && !anyTCP {
		return nil, usageErrorf("TLS is for TCP: give a --host tcp://HOST:PORT")
	}
	return out, nil
}

// Ports of the Docker API, without and with TLS.
const plainPort, tlsPort = "2375", "2376"

func (p *listenPlan) parse(text string) (address, error) {
	network, addr, ok := strings.Cut(text, "://")
	switch {
	case ok && network == "unix" && filepath.IsAbs(addr):
		return address{network, filepath.Clean(addr)}, nil
	case ok && network == "tcp" && !strings.ContainsAny(addr, "/?#@"):
		host, port, err := net.SplitHostPort(addr)
		if err != nil { // no port
			if host, port, err = net.SplitHostPort(addr + ":"); err != nil {
				break
			}
		}
		if port == "" {
			port = plainPort
			if p.tls {
				port = tlsPort
			}
		}
		if addr == "" {
			host = "localhost"
		}
		return address{network, net.JoinHostPort(host, port)}, nil
	}
	return address{}, usageErrorf("--host %s: use unix:///PATH or tcp://HOST:PORT", text)
}

// loopback says whether a TCP address can only be reached from this machine.
func (a address) loopback() bool {
	host, _, err := net.SplitHostPort(a.addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (a address) String() string { return a.network + "://" + a.addr }

// listen opens an address. The listener's Close also removes the socket of a UNIX one. TCP has TLS if
// there are certificates.
func (a address) listen(c *certificates) (net.Listener, error) {
	if a.network == "unix" {
		return listenUnix(a.addr)
	}
	l, err := net.Listen(a.network, a.addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	l = &boundedListener{Listener: l, free: make(chan struct{}, maxConnections), closed: make(chan struct{})}
	if c != nil {
		l = c.listener(l)
	}
	return l, nil
}

// maxConnections bounds the TCP connections of one address, each of which may cost a descriptor before
// its client has shown a certificate: the containers' own must not run out. More wait until one ends.
const maxConnections = 1024

// A boundedListener has so many connections at most.
type boundedListener struct {
	net.Listener
	free   chan struct{} // has one for each connection
	closed chan struct{}
	once   sync.Once
}

func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &boundedConn{TCPConn: conn.(*net.TCPConn), done: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A boundedConn tells its listener of its end. It can still be half-closed, as a TCP connection can.
type boundedConn struct {
	*net.TCPConn
	done func()
}

func (c *boundedConn) Close() error {
	defer c.done()
	return c.TCPConn.Close()
}

// addrOf is where a listener is reached.
func addrOf(l net.Listener) string {
	if u, ok := l.(*unixListener); ok {
		return u.path
	}
	return l.Addr().String()
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// socketMode lets root and the socket's group in.
const socketMode = 0o660

// listenUnix listens on a UNIX socket. The socket is made beside the path and renamed to it, so that it
// never has another mode, and takes the place of one that a dead process left. One that somebody listens
// on, and what is no socket, are left alone.
func listenUnix(path string) (net.Listener, error) {
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on unix://%s: there is a file that is no socket: remove it or choose another path", path)
	default:
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return nil, fmt.Errorf("listen on unix://%s: another process listens there", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("listen on unix://%s: is somebody there? %w", path, err)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".vic-")
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	defer os.RemoveAll(dir) // empty after the rename
	tmp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it knows the old name
	fi, err := placeSocket(tmp, path)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	return &unixListener{UnixListener: l, path: path, socket: fi}, nil
}

// placeSocket gives the socket its mode and its place.
func placeSocket(tmp, path string) (fs.FileInfo, error) {
	if err := os.Chmod(tmp, socketMode); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(tmp)
	if err != nil {
		return nil, err
	}
	return fi, os.Rename(tmp, path)
}

// A unixListener removes its socket when it is closed, unless another has taken its place.
type unixListener struct {
	*net.UnixListener
	path   string
	socket fs.FileInfo
}

func (l *unixListener) Close() error {
	if fi, err := os.Lstat(l.path); err == nil && os.SameFile(fi, l.socket) {
		os.Remove(l.path) // if this fails the next server replaces it
	}
	return l.UnixListener.Close()
}
