package tether

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// giveWay has this process run when the container's do not want to, or have run for their turn: then what
// writes a little at a time fills its pipe before the tether takes it, where else every write would cost two
// switches of the CPU that they share. Processes that the tether starts do not inherit it, see takeTurns.
func giveWay() error {
	// Threads to come inherit it from those there are.
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := setPolicy(tid, unix.SCHED_BATCH); err != nil && err != unix.ESRCH {
			return fmt.Errorf("give way to the container: %w", err)
		}
	}
	return nil
}

// takeTurns undoes giveWay for this thread and what it starts.
func takeTurns() error {
	if err := setPolicy(0, unix.SCHED_NORMAL); err != nil {
		return fmt.Errorf("schedule process: %w", err)
	}
	return nil
}

func setPolicy(tid int, policy uint32) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}, 0)
}
