package vspc

import (
	"bytes"
	"testing"

	"vic/containervm/vspc/telnet"
)

// TestVMotion moves a VM, with bytes under way both ways.
func TestVMotion(t *testing.T) {
	for name, x := range map[string]struct {
		sourceGoesFirst bool // before the target has shown itself
		proxyFirst      bool // the target asks for the proxy before it shows itself
	}{
		"the source stays":              {},
		"the source goes":               {sourceGoesFirst: true},
		"the target asks for the proxy": {proxyFirst: true},
		"it does and the source goes":   {sourceGoesFirst: true, proxyFirst: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, address := serve(t)
			source := testHost(t, address)
			source.bios, source.vc = biosUUID, vcUUID
			source.connect()
			conn := dial(t, s, vcAPI, source.service)
			const half = 256 << 10
			written := make(chan error)
			write := func() {
				_, err := conn.Write(bytes.Repeat([]byte("w"), half))
				written <- err
			}
			go write()
			sequence := []byte{1, telnet.IAC, 0, telnet.SE}
			source.send(append([]byte("before"), telnet.AppendVMware(nil, telnet.VMotionBegin, sequence...)...))
			reads(t, conn, "before")
			cookie := source.await(telnet.VMotionGoAhead)
			if len(cookie) != len(sequence)+secretSize || !bytes.HasPrefix(cookie, sequence) {
				t.Fatalf("cookie %x", cookie)
			}
			before := len(source.data)
			go func() {
				if err := <-written; err != nil {
					t.Error(err)
				}
				write()
			}()
			source.send([]byte(" meanwhile "))
			reads(t, conn, " meanwhile ")
			if x.sourceGoesFirst {
				source.conn.Close()
			}
			target := testHost(t, address)
			target.bios = biosUUID
			if x.proxyFirst {
				target.connect()
			} else {
				target.introduce()
			}
			target.vmware(telnet.VMotionPeer, cookie...)
			if got := target.await(telnet.VMotionPeerOK); !bytes.Equal(got, sequence) {
				t.Errorf("peer is told %x, want %x", got, sequence)
			}
			target.send([]byte("early "))
			if !x.sourceGoesFirst {
				source.send([]byte("and last "))
				source.conn.Close()
			}
			target.vmware(telnet.VMotionComplete, sequence...)
			target.send([]byte("after"))
			want := "early after"
			if !x.sourceGoesFirst {
				want = "and last early after"
			}
			reads(t, conn, want)
			for before+len(target.data) < 2*half {
				e := target.next()
				if e == nil || e.Kind != telnet.Data {
					t.Fatalf("got %+v", e)
				}
				target.data = append(target.data, e.Bytes...)
			}
			if err := <-written; err != nil || before+len(target.data) != 2*half {
				t.Errorf("written: %v; %d bytes to the source, %d to the target", err, before, len(target.data))
			}
			target.data = nil
			writes(t, conn, "on the new host")
			target.expect("on the new host")
			target.vmware(telnet.VMotionBegin, sequence...) // and on
			target.await(telnet.VMotionGoAhead)
		})
	}
}
