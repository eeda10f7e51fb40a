package api

import (
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

// keptEvents is how many past events a client may ask for with since, and how far one that reads
// slowly may fall behind before it misses some.
const keptEvents = 1024

// An eventLog keeps the last events and lets any number of readers follow, each at its own pace. No
// reader can hold up who publishes.
type eventLog struct {
	mu   sync.Mutex
	ring [keptEvents]events.Message
	next uint64        // number of the next event; event n is at ring[n%keptEvents]
	wake chan struct{} // closed by the next event, nil while nobody waits
}

// publish appends an event; it sets the scope, and the time if there is none.
func (l *eventLog) publish(m events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.TimeNano == 0 {
		m.TimeNano = time.Now().UnixNano()
	}
	m.Time = m.TimeNano / int64(time.Second)
	m.Scope = "local"
	l.ring[l.next%keptEvents] = m
	l.next++
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// end is the number that the next event will have.
func (l *eventLog) end() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// read returns the events from number pos on, as far as they are kept, the number to go on with, and a
// channel that is closed once there is more.
func (l *eventLog) read(pos uint64) ([]events.Message, uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next > keptEvents {
		pos = max(pos, l.next-keptEvents)
	}
	var out []events.Message
	for ; pos < l.next; pos++ {
		out = append(out, l.ring[pos%keptEvents])
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return out, pos, l.wake
}
