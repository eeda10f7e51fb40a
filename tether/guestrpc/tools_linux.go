package guestrpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Tools stands in for VMware Tools: while Run runs, vSphere shows them as running, with what Report says of the
// guest, and its "Shut Down Guest OS" and "Restart Guest OS" come to Shutdown.
type Tools struct {
	// Shutdown begins the end of the guest, or its reboot, and does not wait for it. vSphere is told of its error.
	Shutdown func(reboot bool) error
	// SetClock is told the host's time when the guest's may be another: when the VM comes back from a suspension or a
	// snapshot, or has been moved, and when it has booted.
	SetClock func(time.Time) error
	// Diagnose is told why the VMX cannot be heard, once for each time that it cannot.
	Diagnose func(error)

	mu        sync.Mutex
	guest     *Guest // as last reported; nil before
	broadcast bool   // the VMX wants the address as guestinfo, too
}

// Guest is what vSphere shows of one.
type Guest struct {
	Hostname string
	NICs     []NIC
}

// How often the VMX is asked for requests: at once after one, and less and less often while there are none, as
// vmtoolsd does.
const (
	minPause = 10 * time.Millisecond
	maxPause = 100 * time.Millisecond
)

// How long a channel that broke is left alone.
const (
	minRest = time.Second
	maxRest = time.Minute
)

// Run serves the VMX until ctx ends. A channel that breaks, as when the VM comes back from a snapshot, is opened
// anew.
func (t *Tools) Run(ctx context.Context) {
	rest := time.Duration(0)
	for ctx.Err() == nil {
		served, err := t.serve(ctx)
		if served {
			rest = 0
		} else if rest == 0 && err != nil {
			t.Diagnose(fmt.Errorf("speak with vSphere: %w", err))
		}
		rest = min(max(2*rest, minRest), maxRest)
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
}

// serve opens a channel and answers what comes on it until it breaks, or ctx ends. It reports whether anything came.
func (t *Tools) serve(ctx context.Context) (served bool, err error) {
	var c *channel
	if err := withPorts(func() error {
		c, err = open(tclo)
		return err
	}); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, withPorts(c.close)) }()
	var answer []byte
	for pause := time.Duration(0); ; {
		var request []byte
		if err := withPorts(func() error {
			if err := c.send(answer); err != nil {
				return err
			}
			request, err = c.receive()
			return err
		}); err != nil {
			return served, err
		}
		answer = nil
		if len(request) > 0 {
			served, pause = true, 0
			answer = []byte(t.answer(parseOrder(request)))
			continue
		}
		pause = min(max(2*pause, minPause), maxPause)
		select {
		case <-ctx.Done():
			return served, nil
		case <-time.After(pause):
		}
	}
}

// parseOrder cuts a request of the VMX into its name and arguments.
func parseOrder(request []byte) (name, args string) {
	name, args, _ = strings.Cut(strings.TrimRight(string(request), "\x00"), " ")
	return name, args
}

// Changes of the guest's state that the VMX tells or asks for, by number (guestrpc/powerops.h).
var stateChanges = map[string]int{"OS_Halt": stateHalt, "OS_Reboot": stateReboot, "OS_PowerOn": 3, "OS_Resume": stateResume, "OS_Suspend": 5}

const (
	stateHalt   = 1
	stateReboot = 2
	stateResume = 4
)

// answer carries out a request of the VMX.
func (t *Tools) answer(name, args string) string {
	state := stateChanges[name]
	var result string
	var err error
	switch {
	case state != 0:
		err = t.change(state)
	case name == "ping":
	case name == "reset": // a channel begins so, and lives whatever comes of begin
		result = "ATR " + toolsName
		if err := t.begin(); err != nil {
			t.Diagnose(err)
		}
	case name == "Capabilities_Register":
		err = register()
	case name == "Set_Option" && (args == "broadcastIP 0" || args == "broadcastIP 1"):
		err = t.setBroadcast(args == "broadcastIP 1")
	case name == "Set_Option":
		err = errors.New("Unknown or invalid option")
	default:
		err = errors.New("Unknown Command")
	}
	if err != nil {
		return "ERROR " + err.Error()
	}
	return "OK " + result
}

// toolsName is what the VMX knows the one service of a guest by that it takes for VMware Tools.
const toolsName = "toolbox"

// begin says that this channel takes all that the VMX has to ask, and tells about the guest. The one before may have
// been lost with a suspension.
func (t *Tools) begin() error {
	_, err := Call("vmx.capability.unified_loop " + toolsName)
	return errors.Join(err, t.setClock(), t.tell())
}

func (t *Tools) setClock() error {
	now, err := HostTime()
	if err != nil {
		return err
	}
	return t.SetClock(now)
}

// register says what the tools can. The version is that of tools which vSphere does not offer to upgrade, and type 4
// is open-vm-tools; a host before ESXi 6.0 takes the version alone.
func register() error {
	const unmanaged, kind = 0x7fffffff, 4
	_, err := Call(fmt.Sprintf("tools.set.versiontype %d %d", unmanaged, kind))
	if err != nil {
		_, err = Call(fmt.Sprintf("tools.set.version %d", unmanaged))
	}
	if err == nil {
		_, err = Call("tools.capability.statechange ")
	}
	return err
}

// change follows a change of state, and says how it went.
func (t *Tools) change(state int) error {
	var err error
	switch state {
	case stateHalt, stateReboot:
		err = t.Shutdown(state == stateReboot)
	case stateResume:
		err = t.setClock()
	}
	done := 1
	if err != nil {
		done = 0
	}
	_, callErr := Call(fmt.Sprintf("tools.os.statechange.status %d %d", done, state))
	return errors.Join(err, callErr)
}

// Report has vSphere show the guest so.
func (t *Tools) Report(g Guest) error {
	t.mu.Lock()
	t.guest = &g
	t.mu.Unlock()
	return t.tell()
}

func (t *Tools) setBroadcast(on bool) error {
	t.mu.Lock()
	t.broadcast = on
	t.mu.Unlock()
	return t.tell()
}

// Kinds of SetGuestInfo (guestInfo.h).
const (
	infoHostname = 1
	infoNICs     = 9
)

// tell tells the VMX about the guest, if there is anything to tell.
func (t *Tools) tell() error {
	t.mu.Lock()
	defer t.mu.Unlock() // so that what is told last is what is so
	if t.guest == nil {
		return nil
	}
	requests := []string{setGuestInfo(infoNICs, string(appendNICs(nil, t.guest.NICs)))}
	if t.guest.Hostname != "" {
		requests = append(requests, setGuestInfo(infoHostname, t.guest.Hostname))
	}
	if ip := t.guest.first(); t.broadcast && ip.IsValid() {
		requests = append(requests, "info-set guestinfo.ip "+ip.String())
	}
	for _, r := range requests {
		if _, err := Call(r); err != nil {
			return fmt.Errorf("report guest: %w", err)
		}
	}
	return nil
}

func setGuestInfo(kind int, value string) string {
	return fmt.Sprintf("SetGuestInfo  %d %s", kind, value)
}

// first is the address by which vSphere calls the guest.
func (g *Guest) first() netip.Addr {
	var six netip.Addr
	for _, n := range g.NICs {
		for _, a := range n.Addresses {
			switch ip := a.Addr(); {
			case ip.Is4():
				return ip
			case !six.IsValid() && !ip.IsLinkLocalUnicast():
				six = ip
			}
		}
	}
	return six
}
