package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
)

const (
	version    = 1
	maxMessage = 1 << 20
)

// Op is what a Request asks for.
type Op string

const (
	OpExec     Op = "exec"     // start Exec; channels are open already. Reply: PID
	OpResize   Op = "resize"   // give the terminal of Process the size Size
	OpSignal   Op = "signal"   // send Signal to Process
	OpHealth   Op = "health"   // Reply: Health; and events of each change in this session
	OpState    Op = "state"    // Reply: State
	OpShutdown Op = "shutdown" // send Config.StopSignal to the container's process, and SIGKILL after Grace
	OpPing     Op = "ping"
	OpTask     Op = "task"   // begin Task; its channels are open already. Reply: Path, of a TaskRead
	OpPath     Op = "path"   // describe the file Path. Reply: Path
	OpUsage    Op = "usage"  // Reply: Usage
	OpFreeze   Op = "freeze" // hold back all writes to the root disk, until OpThaw or the session's end
	OpThaw     Op = "thaw"
	OpClock    Op = "clock"   // set the clock to Time, after the VM has stood still
	OpSockets  Op = "sockets" // Reply: Sockets
	OpUpdate   Op = "update"  // keep the restart policy and the limits of Update
	OpNetwork  Op = "network" // set the interfaces up as Network says, which may name others than before
)

// Request is what a host asks of a guest.
type Request struct {
	Op Op `json:"op"`
	// Process is an exec's ID; "" is the container's process.
	Process string `json:"process,omitempty"`
	Exec    *Exec  `json:"exec,omitempty"`
	Task    *Task  `json:"task,omitempty"`
	Path    string `json:"path,omitempty"`
	Channel uint16 `json:"channel,omitempty"` // even: stdin and stdout of Exec, or Task's stream; the next: stderr
	Signal  int    `json:"signal,omitempty"`
	// Final, with Signal to the container's process, says that it is not started again when it has ended.
	Final bool  `json:"final,omitempty"`
	Size  Size  `json:"size,omitzero"`
	Grace int64 `json:"grace,omitempty"` // ns
	Time  int64 `json:"time,omitempty"`  // ns since 1970
	// Network is all of what the Config has under that name: what it lacks is taken down.
	Network *Network `json:"network,omitempty"`
	Update  *Update  `json:"update,omitempty"`
}

// Exec is a further process in a container.
type Exec struct {
	ID   string   `json:"id"`
	Args []string `json:"args"`
	// Env is added to the Config's.
	Env []string `json:"env,omitempty"`
	// Dir and User are the Config's if "". Groups go with the User given here.
	Dir    string   `json:"dir,omitempty"`
	User   string   `json:"user,omitempty"`
	Groups []string `json:"groups,omitempty"`
	TTY    bool     `json:"tty,omitempty"` // all output is on stdout then
	Size   Size     `json:"size,omitzero"`
	// Privileged takes nothing of the Config's Privileges away from the process.
	Privileged bool `json:"privileged,omitempty"`
	// The streams that are not wanted are /dev/null. With TTY, Stdout stands for both.
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Reply is a guest's answer to a Request that it has carried out.
type Reply struct {
	PID   int       `json:"pid,omitempty"`
	State *State    `json:"state,omitempty"`
	Path  *PathStat `json:"path,omitempty"`
	Usage *Usage    `json:"usage,omitempty"`
	// Sockets are TCP connections, at most MaxSockets.
	Sockets []Socket `json:"sockets,omitempty"`
	// Addresses of each NIC of a Network, in its order, with those from DHCP.
	Addresses [][]string `json:"addresses,omitempty"`
	// Health is also an event.
	Health *HealthState `json:"health,omitempty"`
}

// MaxSockets is how many connections a guest tells of.
const MaxSockets = 4096

// Socket is a TCP connection of a guest's.
type Socket struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
}

// State is what runs in a guest.
type State struct {
	// PID of the container's process, or 0 before it runs and after.
	PID int `json:"pid"`
	// Execs are those that run and the last ones that ended, oldest first.
	Execs []ExecState `json:"execs,omitempty"`
}

// ExecState is the state of one exec.
type ExecState struct {
	ID   string `json:"id"`
	PID  int    `json:"pid"`
	Exit *Exit  `json:"exit,omitempty"` // nil while it runs
}

// Error is why a guest did not carry out a request.
type Error struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
	// ExitCode is 126 or 127, as docker has it, if Kind is NotStarted.
	ExitCode int `json:"exitCode,omitempty"`
}

// ErrorKind sorts the errors of a guest.
type ErrorKind string

const (
	NotStarted ErrorKind = "not started" // the exec's process could not be started
	NotRunning ErrorKind = "not running" // the process has ended, or not begun
	NotFound   ErrorKind = "not found"   // no exec of that ID, or no such file
	Invalid    ErrorKind = "invalid"     // the request makes no sense
	Failed     ErrorKind = "failed"      // anything else
)

func (e *Error) Error() string { return e.Message }

// Messages on channel 0. The host sends call, the guest answer.
type call struct {
	Number uint64 `json:"n"`
	Request
}

type answer struct {
	Number uint64 `json:"n,omitempty"` // of the call; 0 for an event
	Reply
	Error   *Error `json:"error,omitempty"`
	Process string `json:"process,omitempty"` // event: this exec
	Exit    *Exit  `json:"exit,omitempty"`    // has ended so
}

type hostHello struct {
	Version int    `json:"version"`
	Token   string `json:"token"`
	Window  int    `json:"window"`
}

type guestHello struct {
	Version int    `json:"version"`
	ID      string `json:"id,omitempty"`
	Error   string `json:"error,omitempty"`
}

// encodeMessage returns v as it is sent on channel 0.
func encodeMessage(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(text) > maxMessage {
		return nil, fmt.Errorf("wire: message of %d bytes, at most %d may be sent", len(text), maxMessage)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

// readMessage reads the next message into v. Memory grows with what has come,
// not with what was announced.
func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("wire: message of %d bytes, at most %d may come", n, maxMessage)
	}
	var text bytes.Buffer
	if _, err := io.CopyN(&text, r, int64(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(text.Bytes(), v); err != nil {
		return fmt.Errorf("wire: parse message: %w", err)
	}
	return nil
}
