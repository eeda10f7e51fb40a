package api

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"

	"vic/containervm"
)

// maxPublished bounds the ports of one container: each is a listening socket.
const maxPublished = 4096

// publishedPorts reads the port bindings of a create request, with every exposed port if publishAll is
// set, in order of port: what the host chooses then does not depend on a map's order.
func publishedPorts(bindings network.PortMap, exposed network.PortSet, publishAll bool) ([]containervm.PortBinding, error) {
	var out []containervm.PortBinding
	for _, port := range slices.SortedFunc(maps.Keys(bindings), comparePorts) {
		if err := checkPort(port); err != nil {
			return nil, err
		}
		list := bindings[port]
		if len(list) == 0 {
			list = []network.PortBinding{{}} // "80/tcp": [] leaves the choice to the host
		}
		for _, b := range list {
			from, to, err := parseHostPorts(b.HostPort)
			if err != nil {
				return nil, badRequest("invalid port specification: %q: %w", b.HostPort, err)
			}
			out = append(out, containervm.PortBinding{Proto: string(port.Proto()), Port: port.Num(), HostIP: b.HostIP, HostPort: from, HostPortEnd: to})
		}
	}
	if publishAll {
		for _, port := range slices.SortedFunc(maps.Keys(exposed), comparePorts) {
			if _, bound := bindings[port]; !bound {
				out = append(out, containervm.PortBinding{Proto: string(port.Proto()), Port: port.Num()})
			}
		}
	}
	if len(out) > maxPublished {
		return nil, badRequest("%d published ports are more than the %d allowed", len(out), maxPublished)
	}
	return out, nil
}

// checkPort refuses ports that cannot be published.
func checkPort(p network.Port) error {
	switch {
	case p.IsZero() || p.Num() == 0:
		return badRequest("invalid port specification: %q", p.String())
	case p.Proto() == network.SCTP:
		return notImplemented("port %s: this host has no SCTP yet", p)
	case p.Proto() != network.TCP && p.Proto() != network.UDP:
		return badRequest("invalid port specification: %q: unknown protocol", p.String())
	}
	return nil
}

// parseHostPorts reads "8080", or "8000-8010", of which the host takes the first that is free; to is 0 then for one port.
// "" and "0" leave the choice to the host.
func parseHostPorts(s string) (from, to uint16, err error) {
	if s == "" || s == "0" {
		return 0, 0, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if from, err = parsePort(first); err != nil || !isRange {
		return from, 0, err
	}
	if to, err = parsePort(last); err != nil {
		return 0, 0, err
	}
	switch {
	case to < from:
		return 0, 0, errors.New("its range ends before it begins")
	case to == from:
		to = 0
	}
	return from, to, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return uint16(n), nil
}

func comparePorts(a, b network.Port) int {
	return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
}

// portOf is a port of a container as the API's types have it.
func portOf(b containervm.PortBinding) network.Port {
	p, _ := network.PortFrom(b.Port, network.IPProtocol(cmp.Or(b.Proto, "tcp")))
	return p
}
