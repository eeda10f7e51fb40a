package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Template is the OEM string of a VM without a Config: its guest waits for one on the control
// port. Such a VM is saved while it waits, and starts of others begin from there:
//
//	guest ─► host  22 waiting     no payload; sent whenever a host connects
//	host ─► guest  23 config      one of Config's strings; channel: how many follow; stamp: time, ns since 1970
//	guest ─► host  24 configured  the payload is empty, or says why not
//
// The host hangs up after that, and what follows is a control session like any other. Before it has the
// configuration, once, it can have the guest do what needs none:
//
//	host ─► guest  25 prepare     no payload; the guest answers with another waiting
const Template = "vic-template"

const (
	frameWaiting    = 22
	frameConfig     = 23
	frameConfigured = 24
	framePrepare    = 25
)

// AwaitConfig is the guest's side: it waits for a host and its Config, and calls prepare if the host
// wants that before. The time is the host's, when it sent the Config. io.EOF says that the host has hung up; another may come.
func AwaitConfig(port io.ReadWriter, prepare func() error) (*Config, time.Time, error) {
	fail := func(err error) (*Config, time.Time, error) { return nil, time.Time{}, err }
	wait := func() error {
		if _, err := port.Write(appendFrame(nil, frame{typ: frameWaiting})); err != nil {
			return fmt.Errorf("wait for configuration: %w", err)
		}
		return nil
	}
	if err := wait(); err != nil {
		return fail(err)
	}
	fr := newFrameReader(port)
	var parts []string
	for size := 0; ; {
		f, _, err := fr.next()
		if err != nil {
			return fail(err)
		}
		if f.typ == framePrepare && prepare != nil {
			err, prepare = prepare(), nil
			if err == nil {
				err = wait()
			}
			if err != nil {
				return fail(err)
			}
		}
		if f.typ != frameConfig {
			continue
		}
		if size += len(f.payload); size > maxStrings {
			return fail(errors.New("wire: configuration strings are too long"))
		}
		parts = append(parts, string(f.payload))
		if f.channel > 0 {
			continue
		}
		sent := time.Unix(0, int64(f.stamp))
		c, err := ParseConfig(parts)
		reply := frame{typ: frameConfigured}
		if err != nil {
			reply.payload = []byte(err.Error())
		}
		if _, writeErr := port.Write(appendFrame(nil, reply)); err == nil && writeErr != nil {
			err = fmt.Errorf("confirm configuration: %w", writeErr)
		}
		return c, sent, err
	}
}

// AwaitWaiting waits until the guest at the other end of conn waits for its Config.
func AwaitWaiting(ctx context.Context, conn net.Conn) error {
	_, err := awaitFrame(ctx, conn, frameWaiting)
	return err
}

// SendPrepare has the guest that waits at the other end do what needs no Config, and returns when it
// waits again.
func SendPrepare(ctx context.Context, conn net.Conn) error {
	if _, err := conn.Write(appendFrame(nil, frame{typ: framePrepare})); err != nil {
		return fmt.Errorf("prepare guest: %w", err)
	}
	return AwaitWaiting(ctx, conn)
}

// SendConfig gives a waiting guest its configuration, as Config.Strings made it, and returns when the
// guest has it. The guest acts on it then, whatever becomes of conn.
func SendConfig(ctx context.Context, conn net.Conn, config []string) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) }) // a conn can
	defer stop()
	var b []byte
	for i, s := range config {
		if len(s) > MaxPayload {
			return fmt.Errorf("wire: configuration string of %d bytes", len(s))
		}
		b = appendFrame(b, frame{typ: frameConfig, channel: uint16(len(config) - 1 - i), stamp: uint64(time.Now().UnixNano()), payload: []byte(s)})
	}
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("send configuration: %w", err)
	}
	f, err := awaitFrame(ctx, conn, frameConfigured)
	if err == nil && len(f.payload) > 0 {
		err = fmt.Errorf("guest does not take its configuration: %.500s", f.payload)
	}
	return err
}

// awaitFrame reads until a frame of a type comes.
func awaitFrame(ctx context.Context, conn net.Conn, typ byte) (frame, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) }) // a conn can
	defer stop()
	for fr := newFrameReader(conn); ; {
		f, _, err := fr.next()
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return frame{}, fmt.Errorf("wait for guest: %w", err)
		}
		if f.typ == typ {
			return f, nil
		}
	}
}
