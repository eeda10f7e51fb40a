package tether

import (
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// A bell tells whoever has the log as a file far away that there is more in it, see wire.BellSerial. It is rung again and again
// while the log goes out, and once more after its end.
type bell struct {
	log   *uart
	out   *uart
	rings chan struct{} // has one while somebody has written since the bell was last rung
}

// gather is how long the log is let grow from the first write to the ring.
const gather = 10 * time.Millisecond

// openBell returns nil if there is no port for it.
func openBell(log *uart) (*bell, error) {
	there, err := uartThere(wire.BellSerial)
	if err != nil || !there {
		return nil, err
	}
	out, err := openUART(wire.BellSerial)
	if err != nil {
		return nil, err
	}
	b := &bell{log, out, make(chan struct{}, 1)}
	go b.toll() // for the life of the VM
	return b, nil
}

// ring returns at once. There may be no bell.
func (b *bell) ring() {
	if b == nil {
		return
	}
	select {
	case b.rings <- struct{}{}:
	default: // what it is rung for will have been written by then
	}
}

func (b *bell) toll() {
	for range b.rings {
		for left := 1; left > 0; {
			time.Sleep(gather)
			var err error
			if left, err = unix.IoctlGetInt(int(b.log.f.Fd()), unix.TIOCOUTQ); err != nil {
				left = 0
			}
			if left == 0 {
				_ = b.log.drain() // of the UART's own buffer; the end of the log is looked for in any case
			}
			if _, err := b.out.Write([]byte{0}); err != nil {
				return
			}
		}
	}
}
