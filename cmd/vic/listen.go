package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A listenPlan says where the API is to be reached, and how. Whoever reaches it is root on every
// container, so TCP beyond this machine needs certificates on both sides.
type listenPlan struct {
	addresses []string // unix:///path or tcp://host:port
	noTLS     bool     // do without certificates on any address
	cert, key string   // files of the server's certificate
	ca        string   // file of the authorities that sign clients' certificates
}

// An address is one of a plan's, taken apart.
type address struct {
	network, addr string // unix and a path, or tcp and host:port
}

// check takes the addresses apart and refuses what would be open to everybody.
func (p listenPlan) check() ([]address, error) {
	if (p.cert == "") != (p.key == "") || (p.cert == "") != (p.ca == "") {
		return nil, usageErrorf("--tls-cert, --tls-key and --tls-ca go together: the last says whose certificates clients may show")
	}
	if p.cert != "" && p.noTLS {
		return nil, usageErrorf("--no-tls contradicts --tls-cert")
	}
	if len(p.addresses) == 0 {
		return nil, usageErrorf("no --listen address")
	}
	var out []address
	for _, text := range p.addresses {
		a, err := parseAddress(text)
		if err != nil {
			return nil, err
		}
		if a.network == "tcp" && p.cert == "" && !p.noTLS && !a.loopback() {
			return nil, usageErrorf("--listen %s: anybody who reaches this address could run anything: give --tls-cert, --tls-key and --tls-ca, or say --no-tls", text)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseAddress(text string) (address, error) {
	network, addr, ok := strings.Cut(text, "://")
	switch {
	case ok && network == "unix" && filepath.IsAbs(addr):
		return address{network, filepath.Clean(addr)}, nil
	case ok && network == "tcp":
		if _, port, err := net.SplitHostPort(addr); err == nil && port != "" {
			return address{network, addr}, nil
		}
	}
	return address{}, usageErrorf("--listen %s: use unix:///PATH or tcp://HOST:PORT", text)
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

// listen opens an address. The listener's Close also removes the socket of a UNIX one.
func (p listenPlan) listen(a address) (net.Listener, error) {
	if a.network == "unix" {
		return listenUnix(a.addr)
	}
	var config *tls.Config
	if p.cert != "" {
		var err error
		if config, err = p.tlsConfig(); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen(a.network, a.addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	return l, nil
}

func (p listenPlan) tlsConfig() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("load --tls-cert and --tls-key: %w", err)
	}
	pem, err := os.ReadFile(p.ca)
	if err != nil {
		return nil, fmt.Errorf("load --tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load --tls-ca: %s holds no certificate in PEM", p.ca)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"}, // a connection of HTTP/2 cannot be taken over
	}, nil
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
