package tether

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// filterTable is the guest's table of nftables rules; a container with CAP_NET_ADMIN has others beside it.
const filterTable = "vic"

// filterModules are what the rules take of a kernel that has it not built in.
var filterModules = []string{"nf_tables", "nft_ct", "nft_chain_nat", "nft_redir"}

// setFilters has the kernel filter as nics say, of which each has a name: all at once, in place of what was before. Interfaces
// that are not up yet are filtered from their first packet on.
func (n *network) setFilters(nics []wire.NIC) error {
	if !slices.ContainsFunc(nics, func(nic wire.NIC) bool { return nic.Filter.Any() }) && !n.filtered {
		return nil
	}
	for _, name := range filterModules {
		n.devices.loadFor(name)
	}
	if err := applyFilters(nics); err != nil {
		return fmt.Errorf("filter what interfaces let through: %w", err)
	}
	n.filtered = true
	return nil
}

func applyFilters(nics []wire.NIC) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: filterTable}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	f := filter{c: c, table: t}
	f.input = f.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	f.forward = f.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	f.output = f.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	for _, nic := range nics {
		if nic.Filter.Any() {
			if err := f.add(nic.Name, nic.Filter); err != nil {
				return fmt.Errorf("%s: %w", nic.Name, err)
			}
		}
	}
	return c.Flush()
}

// A filter is the rules that are being written.
type filter struct {
	c                      *nftables.Conn
	table                  *nftables.Table
	input, forward, output *nftables.Chain
	redirect               *nftables.Chain // nil until there is anything to redirect, which takes more of the kernel
}

func (f *filter) chain(name string, t nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return f.c.AddChain(&nftables.Chain{Name: name, Table: f.table, Type: t, Hooknum: hook, Priority: priority})
}

// rule adds a rule of matches, one after another.
func (f *filter) rule(chain *nftables.Chain, matches ...[]expr.Any) {
	f.c.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: slices.Concat(matches...)})
}

// add adds the rules for an interface.
func (f *filter) add(name string, conf *wire.Filter) error {
	in := when(expr.MetaKeyIIFNAME, interfaceData(name))
	for _, p := range conf.Ports {
		if err := f.publish(in, conf.Trust, p); err != nil {
			return err
		}
	}
	switch conf.Trust {
	case wire.Open:
		return nil
	case wire.Closed:
		for chain, key := range map[*nftables.Chain]expr.MetaKey{
			f.input: expr.MetaKeyIIFNAME, f.forward: expr.MetaKeyIIFNAME, f.output: expr.MetaKeyOIFNAME,
		} {
			f.rule(chain, when(key, interfaceData(name)), verdict(expr.VerdictDrop))
		}
		f.rule(f.forward, when(expr.MetaKeyOIFNAME, interfaceData(name)), verdict(expr.VerdictDrop))
		return nil
	case wire.Outbound:
	case wire.Peers:
		if !conf.First.Is4() || !conf.Last.Is4() {
			return fmt.Errorf("peers from %s to %s", conf.First, conf.Last)
		}
		f.rule(f.input, in, from(conf.First, conf.Last), verdict(expr.VerdictAccept))
	case wire.Published:
		f.rule(f.input, in, icmp(unix.IPPROTO_ICMP, icmpEcho), verdict(expr.VerdictAccept))
		f.rule(f.input, in, icmp(unix.IPPROTO_ICMPV6, icmp6Echo), verdict(expr.VerdictAccept))
	default:
		return fmt.Errorf("trust level %q is not known", conf.Trust)
	}
	// Without neighbour discovery there is no IPv6.
	for _, t := range []byte{icmp6MulticastQuery, icmp6RouterAdvert, icmp6Solicit, icmp6Advert} {
		f.rule(f.input, in, icmp(unix.IPPROTO_ICMPV6, t), verdict(expr.VerdictAccept))
	}
	for _, chain := range []*nftables.Chain{f.input, f.forward} {
		f.rule(chain, in, tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
		f.rule(chain, in, verdict(expr.VerdictDrop))
	}
	return nil
}

// publish leads a port of an interface to one of the container's, and lets in what comes that way.
func (f *filter) publish(in []expr.Any, trust wire.Trust, p wire.FilterPort) error {
	proto := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[p.Proto]
	if proto == 0 || p.Port == 0 || p.To == 0 {
		return fmt.Errorf("port %d/%s to %d", p.Port, p.Proto, p.To)
	}
	led := [][]expr.Any{in, port(proto, p.To)}
	if p.Port != p.To {
		if f.redirect == nil {
			f.redirect = f.chain("redirect", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
		}
		f.rule(f.redirect, in, port(proto, p.Port), []expr.Any{
			&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, p.To)},
			&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
		})
		led = append(led, tracked(expr.CtKeySTATUS, ctRedirected))
	}
	if trust == wire.Published {
		f.rule(f.input, append(led, verdict(expr.VerdictAccept))...)
	}
	return nil
}

const (
	icmpEcho            = 8 // RFC 792
	icmp6Echo           = 128
	icmp6MulticastQuery = 130 // RFC 2710
	icmp6RouterAdvert   = 134 // RFC 4861
	icmp6Solicit        = 135
	icmp6Advert         = 136

	ctRedirected = 1 << 5 // IPS_DST_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h)

	portOff   = 2  // of the destination, in the headers of TCP and UDP
	sourceOff = 12 // in the header of IPv4
)

// when matches a packet by what is known of it.
func when(key expr.MetaKey, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Register: 1, Data: data}}
}

// interfaceData is the name of an interface as the kernel compares it.
func interfaceData(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// icmp matches messages of a type.
func icmp(proto, t byte) []expr.Any {
	return append(when(expr.MetaKeyL4PROTO, []byte{proto}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, &expr.Cmp{Register: 1, Data: []byte{t}})
}

// port matches what goes to a port.
func port(proto byte, n uint16) []expr.Any {
	return append(when(expr.MetaKeyL4PROTO, []byte{proto}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: portOff, Len: 2},
		&expr.Cmp{Register: 1, Data: binary.BigEndian.AppendUint16(nil, n)})
}

// from matches what comes from an address of IPv4 between two.
func from(first, last netip.Addr) []expr.Any {
	return append(when(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceOff, Len: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: first.AsSlice()},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: last.AsSlice()})
}

// tracked matches packets of connections of which the kernel knows any of these bits.
func tracked(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
