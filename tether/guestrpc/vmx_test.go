//go:build linux && amd64

package guestrpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A vmx stands for the process that runs a VMware VM: it traces a program, and does for its INs and its
// REP OUTSBs and INSBs, which fault in a process without ports, what open-vm-tools' message.c expects of a VMX. The
// program's CPUID says VMware, where patched has put a faulting instruction in its place.
type vmx struct {
	bulk bool // it offers bulkPort
	// A checkpoint comes at each so many exchanges; 0 for none.
	checkpoint int
	info       map[string]string
	// orders are what the VMX asks for on TCLO, one after the other's answer. The empty one breaks the channel.
	orders []string

	exchanges int
	heard     []string // on RPCI
	answers   []string // on TCLO
	channels  map[uint32]*vmxChannel
	faults    []string // of the program, against the protocol
}

type vmxChannel struct {
	tclo     bool
	broken   bool
	expect   int // bytes of the message that the guest sends; -1 outside of one
	incoming []byte
	message  []byte // for the guest; nil is none
	at       int    // what it has of that
}

// The host's time.
const (
	vmxSeconds      = 1<<32 + 12345
	vmxMicroseconds = 678
)

const (
	cookieHigh = 0xa0b1c2d3
	cookieLow  = 0x14253647
)

func (v *vmx) fault(format string, args ...any) status {
	v.faults = append(v.faults, fmt.Sprintf(format, args...))
	return 0
}

// cut says whether a checkpoint comes now.
func (v *vmx) cut() bool {
	v.exchanges++
	return v.checkpoint > 0 && v.exchanges%v.checkpoint == 0
}

// in is an IN from port.
func (v *vmx) in(r *unix.PtraceRegs) {
	const versionCommand = 10
	ask, command := uint32(r.Rcx)>>16, uint32(r.Rcx)&0xffff
	var st status
	switch {
	case uint32(r.Rax) != magic:
		st = v.fault("magic is %#x", r.Rax)
	case command == versionCommand:
		r.Rax, r.Rbx, r.Rcx = 6, magic, 2
		return
	case command == commandTime:
		r.Rsi, r.Rdx, r.Rbx = vmxSeconds>>32, vmxSeconds&0xffffffff, vmxMicroseconds
		return
	case command != commandMessage:
		st = v.fault("command %d", command)
	case ask == askOpen:
		st = v.open(r)
	default:
		c := v.channel(uint32(r.Rdx)>>16, uint32(r.Rsi), uint32(r.Rdi))
		if c == nil {
			break
		}
		if st = v.message(c, ask, r); ask == askClose {
			delete(v.channels, uint32(r.Rdx)>>16)
		}
	}
	r.Rcx = uint64(st)<<16 | uint64(command)
}

func (v *vmx) open(r *unix.PtraceRegs) status {
	if v.channels == nil {
		v.channels = map[uint32]*vmxChannel{}
	}
	p := uint32(r.Rbx)
	if p != uint32(rpci)|withCookie && p != uint32(tclo)|withCookie {
		return v.fault("protocol %#x", p)
	}
	id := uint32(0)
	for v.channels[id] != nil {
		id++
	}
	v.channels[id] = &vmxChannel{tclo: p == uint32(tclo)|withCookie, expect: -1}
	r.Rdx = uint64(id)<<16 | port
	r.Rsi, r.Rdi = cookieHigh, cookieLow
	return statusDone
}

func (v *vmx) channel(id, high, low uint32) *vmxChannel {
	c := v.channels[id]
	if c == nil || high != cookieHigh || low != cookieLow {
		v.fault("channel %d, cookie %#x %#x", id, high, low)
		return nil
	}
	return c
}

// message is an exchange on a channel other than to open it.
func (v *vmx) message(c *vmxChannel, ask uint32, r *unix.PtraceRegs) status {
	bx := uint32(r.Rbx)
	if ask != askClose && v.cut() {
		c.expect, c.incoming, c.at = -1, nil, 0
		return statusCheckpoint
	}
	done := statusDone
	if v.bulk {
		done |= statusBulk
	}
	switch {
	case ask == askClose:
		return statusDone
	case c.broken:
		return 0
	case ask == askSendSize && bx <= maxSend:
		c.expect, c.incoming = int(bx), nil
		if bx == 0 {
			v.arrived(c)
		}
		return done
	case ask == askSend && c.expect > len(c.incoming):
		c.incoming = binary.LittleEndian.AppendUint32(c.incoming, bx)
		c.incoming = c.incoming[:min(len(c.incoming), c.expect)]
		v.arrived(c)
		return statusDone
	case ask == askReceiveSize && c.message == nil:
		return done
	case ask == askReceiveSize:
		c.at = 0
		r.Rbx, r.Rdx = uint64(len(c.message)), askSendSize<<16|port
		return done | statusWaiting
	case ask == askReceive && c.message != nil && bx == uint32(statusDone):
		var word [4]byte
		c.at += copy(word[:], c.message[c.at:])
		r.Rbx, r.Rdx = uint64(binary.LittleEndian.Uint32(word[:])), askSend<<16|port
		return statusDone
	case ask == askReceived && c.message != nil && c.at == len(c.message):
		c.message = nil
		return statusDone
	}
	return v.fault("asks for %d with %#x", ask, bx)
}

// arrived looks whether the guest's message is whole, and acts on it.
func (v *vmx) arrived(c *vmxChannel) {
	if c.expect != len(c.incoming) {
		return
	}
	text := string(c.incoming)
	c.expect, c.incoming = -1, nil
	if c.tclo {
		if text != "" {
			v.answers = append(v.answers, text)
		}
		if len(v.orders) > 0 {
			c.broken = v.orders[0] == ""
			if c.message = []byte(v.orders[0]); c.broken {
				c.message = nil
			}
			v.orders = v.orders[1:]
		}
		return
	}
	v.heard = append(v.heard, text)
	c.message = []byte(v.rpc(text))
}

func (v *vmx) rpc(request string) string {
	f := strings.SplitN(request, " ", 3)
	switch {
	case f[0] == "info-get" && len(f) == 2:
		if value, ok := v.info[f[1]]; ok {
			return "1 " + value
		}
		return "0 No value found"
	case f[0] == "info-set" && len(f) == 3:
		v.info[f[1]] = f[2]
		return "1 "
	case f[0] == "tools.set.versiontype" || f[0] == "nonsense": // as a host that is too old
		return "0 Unknown command"
	case f[0] == "garbage":
		return "what?"
	}
	return "1 "
}

// bulkMove is a REP OUTSB, or INSB, on bulkPort.
func (v *vmx) bulkMove(pid int, r *unix.PtraceRegs, toGuest bool) error {
	n, addr, high, low := int(r.Rcx), uintptr(r.Rsi), uint32(r.Rbp), uint32(r.Rdi)
	if toGuest {
		addr, high, low = uintptr(r.Rdi), uint32(r.Rsi), uint32(r.Rbp)
	}
	if uint32(r.Rax) != magic || uint32(r.Rbx) != uint32(statusDone)<<16 || r.Eflags&0x400 != 0 {
		v.fault("bulk transfer with eax %#x, ebx %#x, flags %#x", r.Rax, r.Rbx, r.Eflags)
	}
	c := v.channel(uint32(r.Rdx)>>16, high, low)
	if c == nil {
		return errors.New("no such channel")
	}
	st := statusDone
	var err error
	switch {
	case v.cut():
		c.expect, c.at, st = -1, 0, statusCheckpoint
	case toGuest && n == len(c.message):
		c.at = n
		_, err = unix.PtracePokeData(pid, addr, c.message)
		r.Rdi += uint64(n)
	case !toGuest && n == c.expect:
		c.incoming = make([]byte, n)
		_, err = unix.PtracePeekData(pid, addr, c.incoming)
		r.Rsi += uint64(n)
		v.arrived(c)
	default:
		st = v.fault("bulk transfer of %d bytes", n)
	}
	r.Rcx, r.Rbx = 0, uint64(st)<<16
	return err
}

// step does what the faulting instruction is to do, if it is one of ours.
func (v *vmx) step(pid int, sig syscall.Signal) (ours bool, err error) {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &r); err != nil {
		return false, err
	}
	code := make([]byte, 2)
	if _, err := unix.PtracePeekText(pid, uintptr(r.Rip), code); err != nil {
		return false, nil // a jump to nowhere
	}
	is := func(s syscall.Signal, opcode ...byte) bool { return sig == s && bytes.HasPrefix(code, opcode) }
	size := uint64(2)
	switch at := uint16(r.Rdx); {
	case is(unix.SIGSEGV, 0xed) && at == port:
		v.in(&r)
		size = 1
	case is(unix.SIGSEGV, 0xf3, 0x6e) && at == bulkPort:
		err = v.bulkMove(pid, &r, false)
	case is(unix.SIGSEGV, 0xf3, 0x6c) && at == bulkPort:
		err = v.bulkMove(pid, &r, true)
	case is(unix.SIGILL, ud2[0], ud2[1]):
		vmwareCPUID(&r)
	default:
		return false, nil
	}
	r.Rip += size
	return true, errors.Join(err, unix.PtraceSetRegs(pid, &r))
}

// vmwareCPUID is what the instruction says in a VMware VM.
func vmwareCPUID(r *unix.PtraceRegs) {
	leaf := uint32(r.Rax)
	a, b, c, d := cpuid(leaf)
	switch leaf {
	case 1:
		c |= 1 << 31
	case 0x40000000:
		name := []byte("VMwareVMware")
		a, b, c, d = leaf, binary.LittleEndian.Uint32(name), binary.LittleEndian.Uint32(name[4:]), binary.LittleEndian.Uint32(name[8:])
	}
	r.Rax, r.Rbx, r.Rcx, r.Rdx = uint64(a), uint64(b), uint64(c), uint64(d)
}

var ud2 = []byte{0x0f, 0x0b} // faults with SIGILL

// patched copies a program with ud2 in place of the CPUIDs that come after some bytes.
func patched(t *testing.T, program string, after ...byte) string {
	t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	cpuid := append(slices.Clone(after), 0x0f, 0xa2)
	if !bytes.Contains(text, cpuid) {
		t.Fatalf("%s has no CPUID after % x", program, after)
	}
	text = bytes.ReplaceAll(text, cpuid, append(slices.Clone(after), ud2...))
	out := filepath.Join(t.TempDir(), filepath.Base(program))
	if err := os.WriteFile(out, text, 0o700); err != nil {
		t.Fatal(err)
	}
	return out
}

// run runs cmd in the VM to its end, and returns its output.
func (v *vmx) run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: it traces, and has less rights than others
		// Who may have the ports does not fault.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_RAWIO, 0, 0, 0); err != nil && os.Getuid() == 0 {
			ended <- err
			return
		}
		ended <- v.trace(cmd)
	}()
	if err := <-ended; err != nil {
		t.Errorf("%v: %v\n%s", cmd, err, out.Bytes())
	}
	for _, f := range v.faults {
		t.Errorf("the VMX complains: %s", f)
	}
	if len(v.channels) > 0 {
		t.Errorf("%d channels were left open", len(v.channels))
	}
	return out.String()
}

func (v *vmx) trace(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	main := cmd.Process.Pid
	began := false
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		switch {
		case ws.Exited() || ws.Signaled():
			if pid == main {
				_ = cmd.Wait() // takes in the output; that there is no process is no news
				if ws != 0 {
					return fmt.Errorf("ended with status %#x", ws)
				}
				return nil
			}
			continue
		case !began:
			began = true
			if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_EXITKILL); err != nil {
				return fmt.Errorf("trace: %w", err)
			}
		}
		sig := ws.StopSignal()
		switch sig {
		case unix.SIGSEGV, unix.SIGILL:
			ours, err := v.step(pid, sig)
			if err != nil {
				return err
			}
			if ours {
				sig = 0
			}
		case unix.SIGTRAP, unix.SIGSTOP: // an exec, a new thread
			sig = 0
		}
		if err := unix.PtraceCont(pid, int(sig)); err != nil && err != unix.ESRCH {
			return fmt.Errorf("go on: %w", err)
		}
	}
}
