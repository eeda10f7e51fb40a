package containervm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"vic/layerstore"
	"vic/tether/wire"
)

// rack is a Hypervisor whose VMs are goroutines. They outlive Managers, as VMs do.
type rack struct {
	mu    sync.Mutex
	vms   map[string]*fakeVM
	fails error // of the next Start
	gives Resources

	wild func(net.Conn, *fakeVM)
}

// fakeVM is a VM whose guest knows a few commands, see live.
type fakeVM struct {
	vm   VM
	conf *wire.Config
	done chan struct{}
	off  sync.Once

	mu      sync.Mutex
	stdin   *wire.Channel
	begun   chan struct{} // closed with the first session
	signals chan syscall.Signal
	sizes   []Size
	dials   int
	paused  bool
	final   bool           // the signal was
	clock   int64          // as it was set
	nics    []string       // that are plugged in
	told    []wire.Network // what the guest was told, one after another
	terms   wire.Update    // the last ones
	fails   error          // of the next update
	wg      sync.WaitGroup
	wild    func(net.Conn, *fakeVM) // what its control port does
}

func (r *rack) Start(_ context.Context, vm VM) (Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fails; err != nil {
		r.fails = nil
		return nil, err
	}
	conf, err := wire.ParseConfig(vm.Config)
	if err != nil {
		return nil, err
	}
	v := &fakeVM{vm: vm, conf: conf, done: make(chan struct{}), begun: make(chan struct{}), signals: make(chan syscall.Signal, 8)}
	for _, nic := range vm.NICs {
		v.nics = append(v.nics, nic.End)
	}
	if r.vms == nil {
		r.vms = map[string]*fakeVM{}
	}
	r.vms[vm.ID] = v
	if conf.Args[0] == "wild" {
		v.wild = r.wild
	}
	go v.live()
	return fakeMachine{v}, nil
}

func (r *rack) Find(_ context.Context, vm VM) (Machine, error) {
	v := r.vm(vm.ID)
	if v == nil {
		return nil, ErrNoMachine
	}
	select {
	case <-v.done:
		return nil, ErrNoMachine
	default:
		return fakeMachine{v}, nil
	}
}

func (r *rack) Prepare(context.Context, VM) error { return nil }

func (r *rack) Resources() Resources {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gives
}

func (r *rack) vm(id string) *fakeVM {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.vms[id]
}

type fakeMachine struct{ v *fakeVM }

func (m fakeMachine) Info() MachineInfo {
	m.v.mu.Lock()
	defer m.v.mu.Unlock()
	return MachineInfo{PID: 4711, Accel: "tcg", Paused: m.v.paused}
}

func (m fakeMachine) Pause(context.Context) error  { return m.setPaused(true) }
func (m fakeMachine) Resume(context.Context) error { return m.setPaused(false) }

func (m fakeMachine) setPaused(paused bool) error {
	m.v.mu.Lock()
	defer m.v.mu.Unlock()
	m.v.paused = paused
	return nil
}

func (m fakeMachine) Done() <-chan struct{} { return m.v.done }
func (m fakeMachine) Kill() error           { m.v.end(); return nil }
func (m fakeMachine) Close() error          { return nil }

func (m fakeMachine) AddNIC(_ context.Context, nic NIC) error {
	m.v.mu.Lock()
	defer m.v.mu.Unlock()
	m.v.nics = append(m.v.nics, nic.End)
	return nil
}

func (m fakeMachine) RemoveNIC(_ context.Context, end string) error {
	m.v.mu.Lock()
	defer m.v.mu.Unlock()
	m.v.nics = slices.DeleteFunc(m.v.nics, func(e string) bool { return e == end })
	return nil
}

func (m fakeMachine) Dial(ctx context.Context, end string) (net.Conn, error) {
	host, guest := net.Pipe()
	m.v.mu.Lock()
	m.v.dials++
	deaf := m.v.conf.Args[0] == "deaf" && end == "control"
	m.v.mu.Unlock()
	context.AfterFunc(ctx, func() { guest.Close() })
	go func() {
		<-m.v.done
		guest.Close()
	}()
	switch {
	case deaf:
		go io.Copy(io.Discard, guest)
	case end == "control" && m.v.wild != nil:
		go m.v.wild(guest, m.v)
	case end == "control":
		go (&wire.Server{ID: m.v.vm.ID, Token: m.v.conf.Token, Handler: m.v}).Serve(guest)
	}
	return host, nil
}

// end pulls the plug.
func (v *fakeVM) end() { v.off.Do(func() { close(v.done) }) }

// record appends to the log, as long as there is power.
func (v *fakeVM) record(t wire.RecordType, data string) {
	var b []byte
	for {
		n := min(len(data), wire.MaxPayload)
		b = wire.AppendRecord(b, t, time.Now(), []byte(data[:n]))
		if data = data[n:]; data == "" {
			break
		}
	}
	v.raw(string(b))
}

func (v *fakeVM) raw(text string) {
	f, err := os.OpenFile(v.vm.Log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return // removed by force
	}
	defer f.Close()
	f.WriteString(text)
}

func (v *fakeVM) exit(code int) {
	v.record(wire.RecExit, `{"code":`+strconv.Itoa(code)+`}`)
	v.end()
}

// fakeAddresses are what interfaces have, of which a DHCP server gives each the same.
func fakeAddresses(n wire.Network) (all [][]string) {
	for _, nic := range n.NICs {
		var own []string
		for _, a := range nic.Addresses {
			own = append(own, a.String())
		}
		if nic.DHCP {
			own = append(own, "10.77.0.9/24")
		}
		all = append(all, own)
	}
	return all
}

// live runs the guest. Commands:
//
//	print TEXT...   writes to stdout and stderr in turns, and exits with 0
//	exit CODE
//	cat             copies stdin
//	sleep           until a signal; TERM gives 143
//	stubborn        until SIGKILL
//	lingers         has ended, and the VM has yet to write
//	deaf            as sleep, but its control port never answers
//	idle            does nothing, whatever signals come
//	crash           ends without an exit record
//	nope            is not found
//	never           does not start
//	liar CODE       says that it has ended, and has not
//	wild            does what the test says with its control port
func (v *fakeVM) live() {
	args := v.conf.Args
	switch args[0] {
	case "nope":
		v.record(wire.RecExit, `{"code":127,"error":"exec: \"nope\": executable file not found in $PATH"}`)
		v.end()
		return
	case "liar":
		v.record(wire.RecExit, `{"code":`+args[1]+`}`)
		return
	case "never":
		return
	}
	started, _ := json.Marshal(wire.Started{PID: 1, Kernel: "6.1", Addresses: fakeAddresses(v.conf.Network)})
	v.record(wire.RecStarted, string(started))
	switch args[0] {
	case "print":
		for i, text := range args[1:] {
			v.record([]wire.RecordType{wire.Stdout, wire.Stderr}[i%2], text)
		}
		v.exit(0)
	case "exit":
		code, _ := strconv.Atoi(args[1])
		v.exit(code)
	case "cat":
		<-v.begun
		for buf := make([]byte, 512); ; {
			n, err := v.stdin.Read(buf)
			if n > 0 {
				v.record(wire.Stdout, string(buf[:n]))
			}
			if err != nil {
				v.exit(0)
				return
			}
		}
	case "crash":
		os.WriteFile(v.vm.Console, []byte("Kernel panic - not syncing\n"), 0o600)
		v.end()
	case "sleep", "stubborn":
		for sig := range v.signals {
			if sig == syscall.SIGKILL || args[0] == "sleep" {
				v.exit(128 + int(sig))
				return
			}
		}
	}
}

func (v *fakeVM) Begin(stdin *wire.Channel) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stdin == nil {
		v.stdin = stdin
		close(v.begun)
	}
}

// Do carries out requests. Execs know: echo TEXT, cat, exit CODE, and nope.
func (v *fakeVM) Do(s *wire.GuestSession, r wire.Request) (wire.Reply, error) {
	switch r.Op {
	case wire.OpSignal:
		if v.conf.Args[0] == "lingers" {
			v.signals <- 0
			return wire.Reply{}, &wire.Error{Kind: wire.NotRunning, Message: "process has ended"}
		}
		if r.Final {
			v.mu.Lock()
			v.final = true
			v.mu.Unlock()
		}
		v.signals <- syscall.Signal(r.Signal)
	case wire.OpClock:
		v.mu.Lock()
		defer v.mu.Unlock()
		v.clock = r.Time
	case wire.OpResize:
		v.mu.Lock()
		defer v.mu.Unlock()
		v.sizes = append(v.sizes, r.Size)
	case wire.OpSockets:
		return wire.Reply{Sockets: []wire.Socket{{Local: netip.MustParseAddrPort("172.18.0.2:7"), Remote: netip.MustParseAddrPort("192.0.2.1:80")}}}, nil
	case wire.OpNetwork:
		v.mu.Lock()
		defer v.mu.Unlock()
		v.told = append(v.told, *r.Network)
		return wire.Reply{Addresses: fakeAddresses(*r.Network)}, nil
	case wire.OpUpdate:
		v.mu.Lock()
		defer v.mu.Unlock()
		if err := v.fails; err != nil {
			v.fails = nil
			return wire.Reply{}, err
		}
		v.terms = *r.Update
	case wire.OpExec:
		if r.Exec.Args[0] == "nope" {
			return wire.Reply{}, &wire.Error{Kind: wire.NotStarted, Message: "exec: \"nope\": executable file not found in $PATH", ExitCode: 127}
		}
		stdio, stderr, err := s.Open(r.Channel)
		if err != nil {
			return wire.Reply{}, err
		}
		go func() {
			code := 0
			switch r.Exec.Args[0] {
			case "echo":
				io.WriteString(stdio, strings.Join(r.Exec.Args[1:], " "))
				io.WriteString(stderr, "warning")
			case "cat":
				io.Copy(stdio, stdio)
			case "exit":
				code, _ = strconv.Atoi(r.Exec.Args[1])
			}
			stdio.CloseWrite()
			stderr.CloseWrite()
			s.Exited(r.Exec.ID, wire.Exit{Code: code})
		}()
		return wire.Reply{PID: 77}, nil
	default:
		return wire.Reply{}, errors.New("not of this guest")
	}
	return wire.Reply{}, nil
}

// folders is Disks without disks.
type folders struct {
	dir   string
	mu    sync.Mutex
	fails error // of the next call
}

func (*folders) Capacity() int64 { return 1 << 30 }

func (d *folders) fail() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.fails
	d.fails = nil
	return err
}

func (d *folders) CreateContainerDisk(id string, _ digest.Digest) (string, error) {
	dir := filepath.Join(d.dir, id)
	if err := d.fail(); err != nil {
		return "", err
	}
	return filepath.Join(dir, "disk.vmdk"), os.MkdirAll(dir, 0o700)
}

func (d *folders) RemoveContainer(id string) error {
	if err := d.fail(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(d.dir, id))
}

func (d *folders) ContainerFS(context.Context, string) (*layerstore.FS, error) {
	return nil, errors.New("folders have no disks")
}

func (d *folders) OpenChanges(context.Context, string) (*layerstore.ContainerChanges, error) {
	return nil, errors.New("folders have no disks")
}

func (d *folders) ApplyToContainer(context.Context, string, io.Reader) error {
	return errors.New("folders have no disks")
}

func (d *folders) SettleContainer(string) error { return nil }

type boots struct{}

func (boots) Boot(context.Context) (Boot, error) { return Boot{Kernel: "/kernel"}, nil }

// wiring is Networks that carry nothing.
type wiring struct {
	mu    sync.Mutex
	taken map[uint16]bool
	names [][]string // what endpoints were called, one after another
	open  int        // networks and endpoints
	fails error      // of the next Join
	reset []Socket
}

func (w *wiring) Choose(taken []netip.Prefix) (netip.Prefix, error) {
	for i := byte(17); i < 32; i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i, 0, 0}), 16)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no more")
}

func (w *wiring) Open(conf NetworkConfig) (Network, error) {
	w.count(1)
	return &cable{w: w, conf: conf, next: conf.Gateway}, nil
}

func (w *wiring) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
}

type cable struct {
	w    *wiring
	conf NetworkConfig
	next netip.Addr
}

func (c *cable) Close() error {
	c.w.count(-1)
	return nil
}

func (c *cable) Join(o JoinOptions) (Endpoint, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if err := c.w.fails; err != nil {
		c.w.fails = nil
		return nil, err
	}
	if !o.IP.IsValid() && !c.conf.dhcp() {
		c.next = c.next.Next()
		o.IP = c.next
	}
	c.w.names = append(c.w.names, o.Names)
	c.w.open++
	return &plug{w: c.w, names: o.Names, info: EndpointInfo{MAC: "02:42:ac:11:00:02", IP: netip.PrefixFrom(o.IP, c.conf.Subnet.Bits()), Gateway: c.conf.Gateway}}, nil
}

type plug struct {
	w     *wiring
	names []string
	info  EndpointInfo
}

func (p *plug) Info() EndpointInfo {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	i := p.info
	i.Names = p.names
	return i
}

func (p *plug) Publish(ports []PortBinding) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, b := range p.info.Ports {
		delete(p.w.taken, b.HostPort)
	}
	p.info.Ports = nil
	for _, b := range ports {
		if p.w.taken[b.HostPort] {
			return ErrPortAllocated
		}
	}
	if p.w.taken == nil {
		p.w.taken = map[uint16]bool{}
	}
	for _, b := range ports {
		p.w.taken[b.HostPort] = true
	}
	p.info.Ports = ports
	return nil
}

func (p *plug) Rename(names []string) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.names = names
	p.w.names = append(p.w.names, names)
	return nil
}

func (p *plug) Serve(conn io.ReadWriteCloser) error {
	_, err := io.Copy(io.Discard, conn)
	return err
}

func (p *plug) Reset(_ context.Context, sockets []Socket) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.reset = append(p.w.reset, sockets...)
	return nil
}

func (p *plug) Close() error {
	p.w.count(-1)
	return p.Publish(nil)
}

// site is a Manager with all that it needs.
type site struct {
	*Manager
	t     *testing.T
	o     Options
	rack  *rack
	disks *folders
	net   *wiring

	mu     sync.Mutex
	events []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, rack: new(rack), disks: &folders{dir: filepath.Join(dir, "containers")}, net: new(wiring)}
	run, err := os.MkdirTemp("", "vic") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	store, err := layerstore.Open(dir, layerstore.Options{Capacity: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	s.o = Options{Store: dir, Disks: s.disks, Volumes: store, Hypervisor: s.rack, Boot: boots{}, Networks: s.net, RuntimeDir: run}
	s.open()
	t.Cleanup(func() {
		for _, v := range s.rack.vms {
			v.end()
		}
		s.Close()
	})
	return s
}

func (s *site) open() {
	s.t.Helper()
	m, err := Open(s.t.Context(), s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Manager = m
	m.Subscribe(func(e Event) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, e.Type+" "+e.Action)
	})
}

// reopen is a restart of the VCH.
func (s *site) reopen() {
	s.t.Helper()
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

func (s *site) happened() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.Join(s.events, ", ")
	s.events = nil
	return text
}

// tells waits for these events, which come after the state that they are about.
func (s *site) tells(want string) {
	s.t.Helper()
	for over := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got := strings.Join(s.events, ", ")
		s.mu.Unlock()
		if got == want || time.Now().After(over) {
			if got = s.happened(); got != want {
				s.t.Errorf("events %s, want %s", got, want)
			}
			return
		}
	}
}

// create makes a container without a network.
func (s *site) create(spec Spec) *Container {
	s.t.Helper()
	if spec.Network.Mode == "" {
		spec.Network.Mode = "none"
	}
	c, err := s.Create(s.t.Context(), spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) run(spec Spec) *Container {
	s.t.Helper()
	c := s.create(spec)
	if err := c.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// wait returns the exit code.
func (s *site) wait(c *Container, cond WaitCondition) int {
	s.t.Helper()
	ch, err := c.Wait(s.t.Context(), cond)
	if err != nil {
		s.t.Fatal(err)
	}
	r := <-ch
	if r.Err != nil {
		s.t.Fatal(r.Err)
	}
	return r.ExitCode
}

// logs is a container's log, a line for each entry.
func (s *site) logs(c *Container, o LogOptions) string {
	s.t.Helper()
	var b bytes.Buffer
	err := c.Logs(s.t.Context(), o, func(e LogEntry) error {
		b.WriteString(map[bool]string{true: "e:", false: "o:"}[e.Stderr])
		b.Write(e.Data)
		if e.Partial {
			b.WriteString("+")
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
	return b.String()
}

// wantError checks an error's kind and words.
func wantError(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one of %v with %q", err, kind, text)
	}
}
