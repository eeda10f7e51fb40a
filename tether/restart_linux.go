package tether

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// runs runs the container's process again and again, as its restart policy wants, and returns its last
// end. What is on its disks stays, what is in memory does not.
func (g *guest) runs(addresses [][]string) (wire.Exit, error) {
	for wait := time.Duration(0); ; {
		began := time.Now()
		exit, err := g.runOnce(addresses)
		if err != nil {
			return exit, err
		}
		wait = wire.BackOff(wait, time.Since(began))
		if !g.again(exit) {
			return exit, nil
		}
		exit.Again = int64(wait)
		if err := g.log.json(wire.RecExit, exit); err != nil {
			return exit, err
		}
		select {
		case <-g.final:
			exit.Again = 0
			return exit, nil
		case <-time.After(wait):
		}
		if err := g.freshen(); err != nil {
			return wire.Exit{}, err
		}
	}
}

// again says whether the process is to be started again, and counts.
func (g *guest) again(exit wire.Exit) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.final:
		return false
	default:
	}
	if !g.restart.Wants(exit.Code) {
		return false
	}
	g.restart.Done++
	return true
}

// end lets the process not be started again. It reports whether there is none: one that is on its way
// gets the signal when it runs.
func (g *guest) end(sig syscall.Signal) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.final:
	default:
		close(g.final)
	}
	waiting := g.main == nil && g.restart.Done > g.conf.Restart.Done
	if waiting {
		g.late = sig
	}
	return waiting
}

// freshen makes what was mounted for the process as it was before its start. Nothing runs.
func (g *guest) freshen() error {
	for _, m := range slices.Backward(g.conf.Mounts) {
		dir, err := follow(m.Target)
		if err == nil {
			err = unix.Unmount(dir, 0)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", m.Target, err)
		}
	}
	for _, dir := range []string{"/dev/shm", "/proc"} { // the tether's own /proc is below
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if g.conf.TTY {
		if err := unix.Unmount("/dev/console", unix.MNT_DETACH); err != nil {
			g.diagnose(fmt.Errorf("unmount /dev/console: %w", err))
		}
	}
	if err := mountShm(g.conf.ShmSize); err != nil {
		return err
	}
	g.reaper.reopen()
	return g.mountFurther()
}
