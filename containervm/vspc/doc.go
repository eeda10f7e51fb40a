// Package vspc is a virtual serial port concentrator: the proxy that ESXi hosts connect to for serial ports of VMs whose backing names
// it (VirtualSerialPortURIBackingInfo.ProxyURI, see ProxyURI). Whoever wants a port's bytes dials it here by the VM's UUID and the
// backing's ServiceURI.
//
//	VM's UART ─ ESXi host ─ TCP or TLS, Telnet ─► Server ◄─ Dial(UUID, service)
//
// # Conversation
//
// Telnet with 8-bit data, and VMware's option of it ("Using a Proxy with vSphere Virtual Serial Ports"; package telnet has the numbers):
//
//	server  WILL, DO BINARY and SUPPRESS-GO-AHEAD, DO VMWARE
//	host    WILL VMWARE, KNOWN-SUBOPTIONS-1
//	server  KNOWN-SUBOPTIONS-2, GET-VM-BIOS-UUID, GET-VM-VC-UUID, GET-VM-NAME, of those that the host knows
//	host    the answers, in any order with DO-PROXY direction, service URI
//	server  WILL-PROXY, and from then on the port can be dialled by either UUID
//
// Of a direction nothing follows: client or server, the port is dialled here. COM-PORT (RFC 2217) is declined, for behind the port
// are neither a rate nor modem lines, and so is ECHO, since nothing is echoed. A host that declines BINARY is logged: its bytes are taken
// as 8-bit bytes still, and what uses them has checksums (tether/wire).
//
// # vMotion
//
//	source  VMOTION-BEGIN sequence     what was written before has gone to the source; what is written from now on waits
//	server  VMOTION-GOAHEAD sequence, secret
//	target  VMOTION-PEER sequence, secret
//	server  VMOTION-PEER-OK sequence
//	target  VMOTION-COMPLETE sequence  what waits, and all that follows, goes to the target
//
// The stream goes on, for whoever dialled it, with no byte lost or doubled: the VM stands still from BEGIN to COMPLETE. What still comes
// from the source is delivered before anything from the target, which waits for the source's end, at most for drainTimeout. VMOTION-ABORT from
// the source, at any time before COMPLETE, leaves all as it was before BEGIN. A source that goes after BEGIN leaves the target
// vMotionTimeout to show itself. The secret has four bytes, as with every proxy that ESXi is known to work with, and one try a connection.
//
// # Who is believed
//
// Nothing authenticates a host: the protocol has no means, and TLS shows a host who the server is, by the thumbprint in ProxyURI, not the
// reverse. Whoever reaches the listener can claim any UUID, so it belongs on a management network. What a forged connection can do:
//
//   - It cannot take over a connected port: there the first connection stays until it ends, and only a vMotion's secret moves it. A
//     connection whose host is dead ends within some 30 s, by keepalive and TCP_USER_TIMEOUT.
//   - It can take a port that is not connected, and keep its VM out while it stays. It then reads what is written to the port and
//     writes as if it were the guest, whom nobody trusts either: tether/wire bounds all it says, and the token of a control
//     session protects the guest from the far end, not the far end from the guest. The token is what it would learn.
//   - It can use up connections. Those that have not yet said who they are have identifyTimeout to do so and are at most
//     maxStrangers, those that nobody has dialled at most maxPorts; beyond that the oldest goes. Each costs two small buffers and a goroutine.
//
// # Locks
//
// A line's write lock comes before the server's. Neither is held while a reader of a stream is waited for.
package vspc
