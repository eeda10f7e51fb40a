// Package wire is what the VCH and the tether, PID 1 of a container VM, say to
// each other. Three things cross the border of the VM, each one way of its own:
//
//	Config   VCH ─► guest   what to run; fixed when the VM is created. SMBIOS strings, or guestinfo.
//	log      guest ─► VCH   output and exit code of the container's process. Port "vic.log".
//	control  VCH ◄► guest   stdin, resize, signals, exec, state. Port "vic.control".
//
// The ports are virtio-serial's, or UARTs, see ControlSerial.
//
// The VM needs none of the VCH to boot, run and end: Config is in its hardware
// and the log goes to a file that the hypervisor writes. The VCH may vanish and
// come back while the VM runs; it then reads the file from where it was and opens
// a new control session.
//
// # Config
//
// A VM may also be given its Config on the control port, once, see Template.
//
// JSON, deflated, in base64, cut into strings of at most 16 KiB, which become OEM
// strings (SMBIOS 3.0 section 7.12, type 11): "vic1:INDEX/COUNT:BASE64". A guest
// finds them in /sys/firmware/dmi/entries/11-*/raw, which only root may read. In a VMware VM they are
// values of its extraConfig, see GuestInfo, and the guest asks the VMX for them.
//
// # Frames
//
// Log and control share one frame. Integers are little-endian.
//
//	 0  4  magic F5 56 49 43
//	 4  1  type
//	 5  1  checksum of the payload: 0 CRC32C, 1 the low half of XXH64 with seed 0 (log)
//	 6  2  channel (control; 0 in the log)
//	 8  8  stamp: log: time, ns since 1970; control: session << 32 | sequence number
//	16  4  length of the payload as it follows
//	20  4  checksum of the payload as it follows
//	24  4  CRC32C of bytes 0..23
//	28  …  payload, at most 16 KiB before stuffing
//
// The payload is stuffed: a zero byte is put after every F5 56 49 in it. So the magic
// occurs in no payload, and a reader that starts anywhere, or that lost its place in
// damaged bytes, finds the next frame by looking for the magic, even if the payload
// is itself a copy of such a stream. A payload in which the magic does occur is a
// frame cut short (a VM that was killed) followed by another.
//
// # Log
//
// Frame types 1 stdout, 2 stderr, 3 started (JSON Started), 4 exit (JSON Exit), 5
// diagnostic (text from the tether itself). The file is appended to by every boot of
// the VM. Each record is one write of the guest; output is cut into records where the
// tether's reads ended, not at line ends. The last record of a boot that ended well is
// its exit. A guest is hostile: LogReader and Backward bound what they hold whatever
// they are fed, and every claim in a record is only the guest's word.
//
// # Control
//
// Frame types: 16 hello, 17 data, 18 credit, 19 end, 20 drop, 21 lost, 26 ready.
//
// The host opens a session with a hello of a random session number, JSON {version,
// token, window}. The guest compares the token with Config.Token, forgets the session
// it had, and answers with a hello of the same session number, JSON {version, id}, or
// {error}. Frames of any other session are ignored by both. Within a session each side
// numbers its frames from 1, the hello being the first; a number left out means that
// bytes were lost, and then the session is over: never is a byte delivered after a
// gap. The guest tells the host by "lost"; the host hangs up and may open another.
// The transports meant here, a virtio-serial port or a network serial port, lose
// nothing while both ends live. The token guards against crossed wires, not against
// who can read the wire.
//
// A UART loses what comes before the guest has opened it, and tells neither side that the other has gone. So the guest
// says "ready" (session 0) when it begins to listen: a host that waits for the answer to its hello says that again, with
// the same number, and any other host knows that its session is over. The guest's sessions last until the next hello.
//
// A session has channels, each a byte stream in both directions:
//
//	0          messages: 4 bytes of length, at most 1 MiB, and JSON
//	1          stdin of the container's process (host ─► guest only)
//	2n, 2n+1   an exec: stdin/stdout on the even one, stderr on the odd one, chosen by the host
//
// On every channel a side may have `window` bytes under way; reading gives them back
// as credit (payload: 4 bytes, how many). End: no more data comes from this side. Drop:
// this side does not want the rest. A channel number is free again when both sides have
// sent end. Memory is bounded by window and MaxChannels on both sides; a peer that
// oversteps ends the session.
//
// Messages are requests from the host, each answered by one reply with its number, and
// events from the guest (an exec has exited; sent after all its output). Requests are
// carried out side by side. A session that ends leaves every process running: what
// an exec'd process still writes is thrown away, the container's stdin stays open.
//
// # Locks
//
// A session has two mutexes: mu for its channels, wmu to write frames. They are never
// held together; a channel's writing comes before either. The goroutine that reads frames never writes one and never waits
// for a channel's reader, so two sides that both only write cannot lock each other out.
package wire
