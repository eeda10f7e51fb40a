package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// TaskKind says what a Task does.
type TaskKind string

const (
	// TaskRead sends the file Path, a folder with all that is in it, as a tar.
	TaskRead TaskKind = "read"
	// TaskRoot sends the root file system alone as a tar: of what is mounted upon it, only
	// the mount points.
	TaskRoot TaskKind = "root"
	// TaskWrite takes a tar and extracts it in the folder Path.
	TaskWrite TaskKind = "write"
	// TaskProcesses sends the processes of the container, each as the JSON of a ProcessInfo.
	TaskProcesses TaskKind = "processes"
)

// Task is work of the guest's PID 1 itself that has a stream: of what it gives, or takes.
type Task struct {
	ID   string   `json:"id"` // may not be an exec's
	Kind TaskKind `json:"kind"`
	Path string   `json:"path,omitempty"` // as docker cp takes it
	// Own gives all that TaskWrite extracts to the container's user.
	Own bool `json:"own,omitempty"`
	// KeepKinds refuses to put a folder in the place of a file, or the reverse.
	KeepKinds bool `json:"keepKinds,omitempty"`
}

// PathStat describes a file as docker cp wants to know it.
type PathStat struct {
	Name       string `json:"name"` // the last part of the path asked for
	Size       int64  `json:"size"`
	Mode       uint32 `json:"mode"`                 // as io/fs.FileMode
	Mtime      int64  `json:"mtime"`                // ns since 1970
	LinkTarget string `json:"linkTarget,omitempty"` // of a symlink: where it leads in the end
}

// ProcessInfo is one process of a container, numbers and times as in proc(5).
type ProcessInfo struct {
	PID, PPID, PGID, SID, TPGID int
	Threads                     int
	UID, GID                    uint32
	User, Group                 string // names, or the numbers if there are none
	State                       string // R, S, D, …
	Command                     string // name of the executable, at most 15 bytes
	Args                        []string
	TTY                         string // pts/0; "" if there is none
	Nice, Priority              int
	Started                     int64 // ns since 1970
	CPU                         int64 // ns of user and system time
	Virtual, Resident           int64 // bytes
	Locked                      bool  // has pages locked in memory
	Processor                   int
	WaitChannel                 string
	Flags                       uint64
}

// Usage is what a guest has used since its boot.
type Usage struct {
	Time int64 `json:"time"` // when it was read, ns since 1970
	CPUs int   `json:"cpus"`
	// Of all CPUs together, in ns: what was spent in processes and in the kernel, and all
	// time that went by.
	User   int64 `json:"user"`
	Kernel int64 `json:"kernel"`
	Total  int64 `json:"total"`
	// Memory is /proc/meminfo in bytes, Faults are pages, of /proc/vmstat.
	Memory      map[string]int64 `json:"memory"`
	Faults      int64            `json:"faults"`
	MajorFaults int64            `json:"majorFaults"`
	Tasks       int64            `json:"tasks"` // processes and threads of the container
	Networks    []NetworkUsage   `json:"networks,omitempty"`
	Disks       []DiskUsage      `json:"disks,omitempty"`
}

// NetworkUsage is what went through an interface.
type NetworkUsage struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// DiskUsage is what was read from and written to a disk.
type DiskUsage struct {
	Major, Minor            uint64
	Reads, Writes           uint64
	ReadBytes, WrittenBytes uint64
}

// Path describes a file in the guest. An *Error of kind NotFound says that there is none.
func (c *Conn) Path(ctx context.Context, path string) (PathStat, error) {
	r, err := c.call(ctx, Request{Op: OpPath, Path: path})
	if err == nil && r.Path == nil {
		err = errors.New("wire: guest gave no file")
	}
	if err != nil {
		return PathStat{}, err
	}
	return *r.Path, nil
}

// Usage asks what the guest has used.
func (c *Conn) Usage(ctx context.Context) (Usage, error) {
	r, err := c.call(ctx, Request{Op: OpUsage})
	if err == nil && r.Usage == nil {
		err = errors.New("wire: guest gave no usage")
	}
	if err != nil {
		return Usage{}, err
	}
	return *r.Usage, nil
}

// Freeze writes the root file system out and holds back all further writes, so that the
// disk stays as it is, until Thaw or the end of the session.
func (c *Conn) Freeze(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpFreeze})
	return err
}

// Thaw ends Freeze.
func (c *Conn) Thaw(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpThaw})
	return err
}

// Read begins a TaskRead, TaskRoot or TaskProcesses. What it sends is read from the reader,
// whose io.EOF says that all of it came; if the guest could not send all the error is an *Error.
// The caller closes it. PathStat is set if the kind is TaskRead.
func (c *Conn) Read(ctx context.Context, t Task) (PathStat, io.ReadCloser, error) {
	p, r, err := c.begin(ctx, t.ID, Request{Op: OpTask, Task: &t})
	if err != nil {
		return PathStat{}, nil, err
	}
	if err = p.stdio.CloseWrite(); err == nil {
		err = p.stderr.CloseWrite()
	}
	if err == nil && t.Kind == TaskRead && r.Path == nil {
		err = errors.New("wire: guest gave no file")
	}
	if err != nil {
		_ = p.Close()
		return PathStat{}, nil, fmt.Errorf("%s %s: %w", t.Kind, t.Path, err)
	}
	st := PathStat{}
	if r.Path != nil {
		st = *r.Path
	}
	return st, &taskReader{ctx, p}, nil
}

// A taskReader is the stream of a task. Its end counts once the guest has said that it
// was all.
type taskReader struct {
	ctx context.Context
	p   *Process
}

func (r *taskReader) Read(b []byte) (int, error) {
	n, err := r.p.stdio.Read(b)
	if err == io.EOF {
		if exitErr := r.p.result(r.ctx); exitErr != nil {
			err = exitErr
		}
	}
	return n, err
}

func (r *taskReader) Close() error { return r.p.Close() }

// Write carries out a TaskWrite with the tar that from has, and returns when the guest has
// extracted all of it. What was extracted before an error stays.
func (c *Conn) Write(ctx context.Context, t Task, from io.Reader) error {
	p, _, err := c.begin(ctx, t.ID, Request{Op: OpTask, Task: &t})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.stderr.CloseWrite(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Close() })
	defer stop()
	_, copyErr := io.CopyBuffer(struct{ io.Writer }{p.stdio}, struct{ io.Reader }{from}, make([]byte, 64<<10))
	if copyErr != nil && !errors.Is(copyErr, io.ErrClosedPipe) {
		return fmt.Errorf("write %s: %w", t.Path, copyErr) // the guest sees a tar without an end, and fails
	}
	if err := p.stdio.CloseWrite(); err != nil {
		return err
	}
	if err := p.result(ctx); err != nil {
		return err // it says why the guest would not read on
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return copyErr
}

// result waits for a task's end, and is its error.
func (p *Process) result(ctx context.Context) error {
	exit, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return &Error{Kind: Failed, Message: exit.Error}
	}
	return nil
}
