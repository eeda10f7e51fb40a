package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// pipe is the two ends of a control port.
func pipe(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	host, guest = net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

func TestSendConfig(t *testing.T) {
	var noise strings.Builder // does not deflate
	for i := range 2000 {
		noise.WriteString(time.Unix(int64(i)*7919, 0).Format(time.RFC3339Nano))
	}
	for name, conf := range map[string]Config{
		"small": {ID: "a", Args: []string{"true"}},
		"large": {ID: "b", Args: []string{"true"}, Env: []string{"X=" + noise.String()}, Seed: bytes.Repeat([]byte{1, 2, 3}, 9000)},
	} {
		t.Run(name, func(t *testing.T) {
			parts, err := conf.Strings()
			if err != nil {
				t.Fatal(err)
			}
			host, guest := pipe(t)
			done := make(chan error, 1)
			go func() {
				err := AwaitWaiting(t.Context(), host)
				if err == nil {
					err = SendConfig(t.Context(), host, parts)
				}
				done <- err
			}()
			got, sent, err := AwaitConfig(guest, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, conf) || time.Since(sent).Abs() > time.Hour {
				t.Errorf("got %+v, sent %v", got, sent)
			}
		})
	}
}

// TestSendPrepare has a guest prepare itself, which then takes its configuration or has failed.
func TestSendPrepare(t *testing.T) {
	parts, err := (&Config{ID: "a", Args: []string{"true"}}).Strings()
	if err != nil {
		t.Fatal(err)
	}
	for name, failure := range map[string]error{"prepared": nil, "failed": errors.New("no room")} {
		t.Run(name, func(t *testing.T) {
			host, guest := pipe(t)
			done := make(chan error, 1)
			go func() {
				err := AwaitWaiting(t.Context(), host)
				if err == nil {
					err = SendPrepare(t.Context(), host)
				}
				if err == nil {
					err = SendConfig(t.Context(), host, parts)
				}
				done <- err
			}()
			got, _, err := AwaitConfig(guest, func() error { return failure })
			guest.Close()
			if err != failure || (err == nil) != (got != nil) {
				t.Errorf("got %v, %v", got, err)
			}
			if err := <-done; (err == nil) != (failure == nil) {
				t.Errorf("host: %v", err)
			}
		})
	}
}

func TestSendConfigRefused(t *testing.T) {
	for name, parts := range map[string][]string{
		"nonsense":   {"vic1:0/1:!"},
		"incomplete": {"vic1:0/2:AAAA"},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pipe(t)
			refused := make(chan error, 1)
			go func() {
				err := AwaitWaiting(t.Context(), host)
				if err == nil {
					err = SendConfig(t.Context(), host, parts)
				}
				refused <- err
			}()
			if _, _, err := AwaitConfig(guest, nil); err == nil {
				t.Error("guest takes it")
			}
			if err := <-refused; err == nil || !strings.Contains(err.Error(), "guest does not take its configuration") {
				t.Errorf("host is told %v", err)
			}
		})
	}
}

// TestSendConfigDeaf gives up on a guest that says nothing, or goes away.
func TestSendConfigDeaf(t *testing.T) {
	host, guest := pipe(t)
	go io.Copy(io.Discard, guest)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := SendConfig(ctx, host, []string{"x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	host, guest = pipe(t)
	go func() {
		io.CopyN(io.Discard, guest, 10)
		guest.Close()
	}()
	if err := SendConfig(t.Context(), host, []string{"x"}); err == nil {
		t.Error("sent to a guest that has gone")
	}
}

// stream is a port on which everything was said already.
type stream struct {
	io.Reader
	io.Writer
}

func FuzzAwaitConfig(f *testing.F) {
	conf := Config{ID: "a", Args: []string{"true"}}
	parts, err := conf.Strings()
	if err != nil {
		f.Fatal(err)
	}
	whole := appendFrame(nil, frame{typ: frameConfig, stamp: 1, payload: []byte(parts[0])})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(slices.Concat(appendFrame(nil, frame{typ: framePrepare}), appendFrame(nil, frame{typ: framePrepare}), whole))
	f.Add(append(appendFrame(nil, frame{typ: frameConfig, channel: 1, stamp: 1, payload: []byte("vic1:0/2:")}), whole...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var said bytes.Buffer
		prepared := 0
		c, _, err := AwaitConfig(stream{bytes.NewReader(b), &said}, func() error { prepared++; return nil })
		if prepared > 1 {
			t.Errorf("prepared %d times", prepared)
		}
		if (c == nil) == (err == nil) {
			t.Errorf("got %v, %v", c, err)
		}
		if said.Len() > 3*headerSize+maxStuffed {
			t.Errorf("%d bytes of answer", said.Len())
		}
	})
}
