package bench

import (
	"time"

	"golang.org/x/sys/unix"
)

// A Stage is a part of what happens to a layer.
type Stage int

// The stages, in the order in which a byte meets them.
const (
	stageIdle     Stage = iota // what the measuring itself takes
	StageFetch                 // HTTP over loopback, and SHA-256 of the blob, as fetch verifies it
	StageBlobHash              // SHA-256 of the blob
	StageInflate               // decompressing
	StageTarHash               // SHA-256 of the tar
	StageCopy                  // copying the tar once in memory
	StageTar                   // taking the tar apart
	StageChecksum              // CRC-32C of what is written
	StageWrite                 // building the VMDK's extent file and writing it
	StageBind                  // ext4: binding the layer to the file system below
	StageSync                  // making the extent file durable
	numStages
)

var stageNames = [numStages]string{"", "fetch", "hash blob", "inflate", "hash tar", "copy", "tar", "checksum", "write vmdk", "bind ext4", "sync"}

func (s Stage) String() string { return stageNames[s] }

// A usage is time that something took.
type usage struct{ wall, cpu time.Duration }

// A clock tells which stage took how much time. It counts the CPU time of the whole process, of which only
// one thread does anything worth mentioning meanwhile.
type clock struct {
	at        Stage
	wall, cpu time.Duration // when at began
	spent     [numStages]usage
}

// to ends a stage and begins another. It returns the one that it ended.
func (c *clock) to(s Stage) Stage {
	wall, cpu := timeOf(unix.CLOCK_MONOTONIC), timeOf(unix.CLOCK_PROCESS_CPUTIME_ID)
	if c.wall != 0 {
		c.spent[c.at].wall += wall - c.wall
		c.spent[c.at].cpu += cpu - c.cpu
	}
	was := c.at
	c.at, c.wall, c.cpu = s, wall, cpu
	return was
}

func timeOf(clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		panic("bench: read clock: " + err.Error()) // both are in every kernel that Go runs on
	}
	return time.Duration(t.Nano())
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
