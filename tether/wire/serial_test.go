package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// TestReady has a host say hello to a guest that does not listen yet, as at the other end of a UART, and the guest begin
// anew later.
func TestReady(t *testing.T) {
	for _, x := range []struct {
		name  string
		heard bool // the first hello is not lost after all
		ready int  // how often the guest says that it is
	}{
		{"hello is lost", false, 1},
		{"hello is lost and ready comes twice", false, 2},
		{"hello was heard", true, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, b := net.Pipe()
			type result struct {
				conn *Conn
				err  error
			}
			connected := make(chan result, 1)
			go func() {
				conn, err := Connect(t.Context(), a, ConnectOptions{Token: "secret", Window: SerialWindow})
				connected <- result{conn, err}
			}()
			f, _, err := newFrameReader(b).next()
			if err != nil {
				t.Fatal(err)
			}
			var heard []byte
			if x.heard {
				heard = appendFrame(nil, f)
			}
			for range x.ready {
				if err := Announce(b); err != nil {
					t.Fatal(err)
				}
			}
			serve(t, struct {
				io.Reader
				io.WriteCloser
			}{io.MultiReader(bytes.NewReader(heard), b), b})
			r := <-connected
			if r.err != nil {
				t.Fatal(r.err)
			}
			conn := r.conn
			defer conn.Close()
			for range 3 {
				if err := conn.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := Announce(b); err != nil {
				t.Fatal(err)
			}
			<-conn.Done()
			if err := conn.Err(); !errors.Is(err, ErrLost) || errors.Is(err, ErrProtocol) {
				t.Errorf("the guest began anew: %v", err)
			}
		})
	}
}
