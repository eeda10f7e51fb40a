package network

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	dnsPort = 53
	// maxQueries are under way at a time for all guests; those too many are dropped, and asked again by
	// the guest's resolver.
	maxQueries = 256
	// maxNameConns are TCP connections to the name server.
	maxNameConns = 64
	// queryTimeout is for one server, and answerTimeout for all of them.
	queryTimeout  = 3 * time.Second
	answerTimeout = 10 * time.Second
	// idleTimeout is for a TCP connection without a query.
	idleTimeout = 10 * time.Second
	// maxQuery is the longest query over UDP, which a resolver with EDNS options stays far below.
	maxQuery = 4096
	// plainSize is the longest answer over UDP for who does not say more (RFC 1035, 4.2.1).
	plainSize = 512
)

// serveNames starts the name server at the gateway's addresses. It ends with the stack.
func (n *Network) serveNames() error {
	addrs := []netip.Addr{n.gateway}
	if n.gateway6.IsValid() {
		addrs = append(addrs, n.gateway6)
	}
	for _, a := range addrs {
		at := full(a, dnsPort)
		pc, err := gonet.DialUDP(n.link.stack, &at, nil, protocol(a))
		if err != nil {
			return err
		}
		l, err := gonet.ListenTCP(n.link.stack, at, protocol(a))
		if err != nil {
			return errors.Join(err, pc.Close())
		}
		n.wg.Go(func() { n.serveUDP(pc) })
		n.wg.Go(func() { n.serveTCP(l) })
	}
	return nil
}

func (n *Network) serveUDP(pc net.PacketConn) {
	slots := make(chan struct{}, maxQueries)
	buf := make([]byte, maxQuery)
	for {
		size, from, err := pc.ReadFrom(buf)
		if err != nil {
			return // the stack has ended
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:size]) != nil {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		n.wg.Go(func() {
			defer func() { <-slots }()
			a := n.answer(q, "udp", from)
			limit := plainSize
			if o := q.IsEdns0(); o != nil {
				limit = max(limit, min(int(o.UDPSize()), maxQuery))
			}
			a.Truncate(limit)
			if b, err := a.Pack(); err == nil {
				_, _ = pc.WriteTo(b, from) // it will ask again
			}
		})
	}
}

func (n *Network) serveTCP(l net.Listener) {
	slots := make(chan struct{}, maxNameConns)
	for {
		c, err := l.Accept()
		if err != nil {
			return // the stack has ended
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		n.wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			n.serveConn(&dns.Conn{Conn: c})
		})
	}
}

func (n *Network) serveConn(c *dns.Conn) {
	for {
		if err := c.SetDeadline(time.Now().Add(idleTimeout + answerTimeout)); err != nil {
			return
		}
		q, err := c.ReadMsg()
		if err != nil {
			return
		}
		if c.WriteMsg(n.answer(q, "tcp", c.RemoteAddr())) != nil {
			return
		}
	}
}

// answer answers a query that came over transport from a guest.
func (n *Network) answer(q *dns.Msg, transport string, from net.Addr) *dns.Msg {
	a := new(dns.Msg)
	if q.Response || q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return a.SetRcode(q, dns.RcodeNotImplemented)
	}
	var e *Endpoint
	if ap, err := netip.ParseAddrPort(from.String()); err == nil {
		e = n.endpointOf(ap.Addr().Unmap().WithZone(""))
	}
	if e == nil { // it has left
		return a.SetRcode(q, dns.RcodeRefused)
	}
	places := n.f.placesOf(e)
	outside := false
	for _, p := range places {
		if p.answer(a, q) {
			return a
		}
		outside = outside || !p.n.conf.Internal
	}
	if outside && n.ask(a, q, transport, e) {
		return a
	}
	a.SetRcode(q, dns.RcodeServerFailure)
	a.RecursionAvailable = true
	return a
}

// ask asks the container's or the host's servers.
func (n *Network) ask(a, q *dns.Msg, transport string, e *Endpoint) bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	client := dns.Client{Net: transport, Timeout: queryTimeout, UDPSize: maxQuery}
	for _, server := range n.servers(e) {
		// The query goes out under an ID that the guest does not know.
		asked := q.Copy()
		asked.Id = dns.Id()
		r, _, err := client.ExchangeContext(ctx, asked, server)
		if err == nil && r.Rcode != dns.RcodeServerFailure && r.Rcode != dns.RcodeRefused {
			r.Id = q.Id
			*a = *r
			return true
		}
	}
	return false
}

// answer fills in a if the name or the address is known to the network, or to the endpoint by a link.
func (e *Endpoint) answer(a, q *dns.Msg) bool {
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	header := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Rrtype: question.Qtype}
	n := e.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	if ip, ok := reverseAddr(name); ok && (n.pool.subnet.Contains(ip) || n.pool6 != nil && n.pool6.subnet.Contains(ip)) {
		a.SetReply(q)
		if of := n.byIP[ip]; of != nil && len(of.names) > 0 && question.Qtype == dns.TypePTR {
			a.Answer = append(a.Answer, &dns.PTR{Hdr: header, Ptr: dns.Fqdn(of.names[0])})
		} else if of == nil {
			a.Rcode = dns.RcodeNameError
		}
	} else if all := e.named(name); len(all) > 0 {
		a.SetReply(q)
		for _, of := range all {
			switch {
			case question.Qtype == dns.TypeA:
				a.Answer = append(a.Answer, &dns.A{Hdr: header, A: of.ip.AsSlice()})
			case question.Qtype == dns.TypeAAAA && of.ip6.IsValid():
				a.Answer = append(a.Answer, &dns.AAAA{Hdr: header, AAAA: of.ip6.AsSlice()})
			}
		}
	} else {
		return false
	}
	a.Authoritative, a.RecursionAvailable = true, true
	return true
}

// named are the endpoints that e knows by a name, also with the network's own behind it, as docker has it. Call it
// with the network's mu held.
func (e *Endpoint) named(name string) []*Endpoint {
	short, _ := strings.CutSuffix(name, "."+strings.ToLower(e.n.conf.Name))
	for _, name := range []string{name, short} {
		if linked := e.links[name]; linked != "" {
			name = linked
		}
		if all := e.n.byName[name]; len(all) > 0 {
			return all
		}
	}
	return nil
}

// reverseAddr is the address in a name such as 2.0.17.172.in-addr.arpa, or one of 32 digits in ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if v6, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		digits := strings.Split(v6, ".")
		if len(digits) != 32 {
			return netip.Addr{}, false
		}
		slices.Reverse(digits)
		b, err := hex.DecodeString(strings.Join(digits, ""))
		if err != nil || len(b) != 16 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16([16]byte(b)), true
	}
	name, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(name)
	if err != nil || !a.Is4() {
		return netip.Addr{}, false
	}
	b := a.As4()
	slices.Reverse(b[:])
	return netip.AddrFrom4(b), true
}

// servers are those to be asked for a guest, as HOST:PORT.
func (n *Network) servers(e *Endpoint) []string {
	var all []string
	for _, a := range e.dns {
		all = append(all, netip.AddrPortFrom(a, dnsPort).String())
	}
	if len(all) > 0 {
		return all
	}
	c, err := dns.ClientConfigFromFile(n.f.o.Resolv)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			n.log.Warn("read name servers", "file", n.f.o.Resolv, "error", err)
		}
		return nil
	}
	for _, s := range c.Servers {
		all = append(all, net.JoinHostPort(s, c.Port))
	}
	return all
}
