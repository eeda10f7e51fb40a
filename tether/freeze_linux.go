package tether

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// The requests of ioctl_fifreeze(2) and its opposite, _IOWR('X', 119, int) and 120.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// A freezer holds back writes to the root file system for a host that reads its disk. Who
// froze it may vanish: the end of the session thaws it.
type freezer struct {
	mu   sync.Mutex
	root *os.File      // nil unless it is frozen
	thaw chan struct{} // closed with the thawing
}

func (f *freezer) freeze(s *wire.GuestSession) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root != nil {
		return &wire.Error{Kind: wire.Invalid, Message: "the root file system is frozen already"}
	}
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(root.Fd()), fiFreeze, 0); err != nil {
		root.Close()
		return fmt.Errorf("freeze the root file system: %w", err)
	}
	thawed := make(chan struct{})
	f.root, f.thaw = root, thawed
	go func() { // until it is thawed by whomever
		select {
		case <-s.Done():
			_ = f.release(thawed) // printed there
		case <-thawed:
		}
	}()
	return nil
}

// release thaws; which is the freeze meant, nil whichever there is.
func (f *freezer) release(which chan struct{}) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root == nil || which != nil && which != f.thaw {
		return &wire.Error{Kind: wire.Invalid, Message: "the root file system is not frozen"}
	}
	err := unix.IoctlSetInt(int(f.root.Fd()), fiThaw, 0)
	if err != nil {
		err = fmt.Errorf("thaw the root file system: %w", err)
		printk("%v", err)
	}
	f.root.Close()
	close(f.thaw)
	f.root = nil
	return err
}
