package tether

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"vic/tether/wire"
)

// States of a TCP connection that could wait for its peer, as the kernel numbers them (include/net/tcp_states.h).
var waitingStates = []string{"01", "04", "05", "08", "09", "0B"} // established, fin wait 1 and 2, close wait, last ack, closing

// sockets are the TCP connections of all processes.
func sockets() ([]wire.Socket, error) {
	var all []wire.Socket
	for _, path := range []string{ownProc("self/net/tcp"), ownProc("self/net/tcp6")} {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		all, err = parseSockets(f, all)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return all, nil
}

// parseSockets reads a table such as /proc/net/tcp (proc(5)) and appends its connections: after a head, lines of
// number, local and remote address, state, and more.
func parseSockets(r io.Reader, all []wire.Socket) ([]wire.Socket, error) {
	sc := bufio.NewScanner(r)
	sc.Scan()
	for sc.Scan() && len(all) < wire.MaxSockets {
		f := strings.Fields(sc.Text())
		if len(f) < 4 {
			return nil, fmt.Errorf("line %q is too short", sc.Text())
		}
		if !slices.Contains(waitingStates, f[3]) {
			continue
		}
		local, err := parseSocketAddr(f[1])
		if err != nil {
			return nil, err
		}
		remote, err := parseSocketAddr(f[2])
		if err != nil {
			return nil, err
		}
		all = append(all, wire.Socket{Local: local, Remote: remote})
	}
	return all, sc.Err()
}

// parseSocketAddr reads an address, words of 32 bits in the machine's order, and a port, all in hexadecimal.
func parseSocketAddr(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(words)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %q", text)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
