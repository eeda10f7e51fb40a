package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
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

// serveNames starts the name server at the gateway's address. It ends with the stack.
func (n *Network) serveNames() error {
	at := full(n.gateway, dnsPort)
	pc, err := gonet.DialUDP(n.link.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	l, err := gonet.ListenTCP(n.link.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		return errors.Join(err, pc.Close())
	}
	n.wg.Go(func() { n.serveUDP(pc) })
	n.wg.Go(func() { n.serveTCP(l) })
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
	if n.answerLocally(a, q) {
		return a
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	client := dns.Client{Net: transport, Timeout: queryTimeout, UDPSize: maxQuery}
	for _, server := range n.servers(from) {
		// The query goes out under an ID that the guest does not know.
		asked := q.Copy()
		asked.Id = dns.Id()
		r, _, err := client.ExchangeContext(ctx, asked, server)
		if err == nil && r.Rcode != dns.RcodeServerFailure && r.Rcode != dns.RcodeRefused {
			r.Id = q.Id
			return r
		}
	}
	a.SetRcode(q, dns.RcodeServerFailure)
	a.RecursionAvailable = true
	return a
}

// answerLocally fills in a if the name or the address is the network's to know.
func (n *Network) answerLocally(a, q *dns.Msg) bool {
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	header := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Rrtype: question.Qtype}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if ip, ok := reverseAddr(name); ok && n.pool.subnet.Contains(ip) {
		a.SetReply(q)
		if e := n.byIP[ip]; e != nil && len(e.names) > 0 && question.Qtype == dns.TypePTR {
			a.Answer = append(a.Answer, &dns.PTR{Hdr: header, Ptr: dns.Fqdn(e.names[0])})
		} else if e == nil {
			a.Rcode = dns.RcodeNameError
		}
	} else if all := n.byName[name]; len(all) > 0 {
		a.SetReply(q)
		for _, e := range all {
			if question.Qtype == dns.TypeA {
				a.Answer = append(a.Answer, &dns.A{Hdr: header, A: e.ip.AsSlice()})
			}
		}
	} else {
		return false
	}
	a.Authoritative, a.RecursionAvailable = true, true
	return true
}

// reverseAddr is the IPv4 address in a name such as 2.0.17.172.in-addr.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	name, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(name)
	if err != nil || !a.Is4() {
		return netip.Addr{}, false
	}
	b := a.As4()
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	return netip.AddrFrom4(b), true
}

// servers are those to be asked for a guest, as HOST:PORT.
func (n *Network) servers(from net.Addr) []string {
	var own []netip.Addr
	if ap, err := netip.ParseAddrPort(from.String()); err == nil {
		if e := n.endpointOf(ap.Addr().Unmap()); e != nil {
			own = e.dns
		}
	}
	var all []string
	for _, a := range own {
		all = append(all, netip.AddrPortFrom(a, dnsPort).String())
	}
	if len(all) > 0 {
		return all
	}
	c, err := dns.ClientConfigFromFile(n.o.Resolv)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			n.log.Warn("read name servers", "file", n.o.Resolv, "error", err)
		}
		return nil
	}
	for _, s := range c.Servers {
		all = append(all, net.JoinHostPort(s, c.Port))
	}
	return all
}
