//go:build linux

package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"sync"

	"vic/containervm/appliance"
)

// maxReason bounds what a status says of an error.
const maxReason = 2 << 10

// status is how the appliance is. What changes of it is told.
type status struct {
	tell func(value string)

	mu    sync.Mutex // held while it is told, so that what is told last is what is so
	state appliance.Status
}

// change changes the status, and tells it.
func (s *status) change(f func(*appliance.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.state)
	text, err := json.Marshal(s.state)
	if err != nil {
		panic(err) // it has nothing that JSON has not
	}
	s.tell(string(text))
}

func (s *status) now() appliance.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *status) start(version string) {
	s.change(func(st *appliance.Status) { st.State, st.Version = appliance.Starting, version })
}

func (s *status) serve() {
	s.change(func(st *appliance.Status) { st.State = appliance.Serving })
}

func (s *status) end() {
	s.change(func(st *appliance.Status) { st.State = appliance.Ending })
}

func (s *status) fail(err error) {
	s.change(func(st *appliance.Status) { st.State, st.Error = appliance.Failed, reason(err) })
}

// restart is fail of vic serve.
func (s *status) restart(err error) {
	s.change(func(st *appliance.Status) {
		st.State, st.Error = appliance.Failed, reason(err)
		st.Restarts++
	})
}

func (s *status) setAddresses(all map[string][]netip.Prefix) {
	s.change(func(st *appliance.Status) { st.Addresses = all })
}

func reason(err error) string {
	text := err.Error()
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "..."
	}
	return text
}
