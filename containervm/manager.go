package containervm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"vic/layerstore"
)

// Options of a Manager. Store, Disks, Volumes, Hypervisor, Boot and Networks must be set.
type Options struct {
	// Store is the folder of the layer store; containers live in its folder "containers".
	Store      string
	Disks      Disks
	Volumes    *layerstore.Store // of the same folder
	Hypervisor Hypervisor
	Boot       Booter
	Networks   Networks
	// ContainerNetworks are those of the hypervisor's that containers may join.
	ContainerNetworks []ContainerNetwork
	// Quota bounds the containers.
	Quota Quota
	// RuntimeDir is for sockets; its path has at most 60 bytes. "" means a folder below
	// /run/vic that is named by a hash of Store's path.
	RuntimeDir string
	// StartTimeout is how long a VM may take until its process runs. 0 means 3 minutes.
	StartTimeout time.Duration
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger
}

// A Manager is the containers of one store. Its methods, and those of what it
// hands out, may be used concurrently.
type Manager struct {
	o       Options
	dir     string // STORE/containers
	lock    *os.File
	watcher *fsnotify.Watcher // of the logs of running containers
	closed  chan struct{}
	wg      sync.WaitGroup

	making    sync.Mutex    // held while a network is made
	admitting chan struct{} // has one while a container is admitted for which storage is measured

	// Lock order: Container.op, Container.netOp, Manager.making, Manager.volumes, Manager.mu, Container.mu, Manager.events.mu.
	mu         sync.Mutex
	containers map[string]*Container // by ID
	names      map[string]*Container
	execs      map[string]*Exec
	networks   map[string]*segment // by ID

	volumes sync.Mutex          // guards holders and copies; comes before mu
	holders map[string][]holder // of each volume that a VM has
	copies  map[string]*copies  // of each volume that somebody reads or writes without one

	events events
}

// Open takes over the containers of a store. Those whose VMs run are found again, those
// that ended meanwhile get their exit codes, and what was to be removed at its end is.
// A second Manager on the same store, in whichever process, is refused with ErrConflict.
// A container whose files are damaged is Dead, and does not hinder the others.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.RuntimeDir == "" {
		path, err := filepath.Abs(o.Store)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(path))
		o.RuntimeDir = filepath.Join("/run/vic", hex.EncodeToString(sum[:6]))
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 3 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{o: o, dir: filepath.Join(o.Store, "containers"), closed: make(chan struct{}), admitting: make(chan struct{}, 1),
		containers: map[string]*Container{}, names: map[string]*Container{}, execs: map[string]*Exec{}, networks: map[string]*segment{}, holders: map[string][]holder{}, copies: map[string]*copies{}}
	for _, dir := range []string{m.dir, o.RuntimeDir} {
		if err := os.MkdirAll(dir, 0711); err != nil {
			return nil, err
		}
	}
	var err error
	if m.lock, err = lockFile(filepath.Join(o.RuntimeDir, "lock")); err != nil {
		return nil, err
	}
	if m.watcher, err = fsnotify.NewWatcher(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch logs: %w", err), m.lock.Close())
	}
	m.wg.Go(m.watch)
	if err := m.openNetworks(); err != nil {
		return nil, errors.Join(fmt.Errorf("open networks: %w", err), m.Close())
	}
	if err := m.scan(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if h, ok := o.Hypervisor.(Shared); ok {
		m.wg.Go(func() { m.followOthers(h) })
	}
	if err := m.prepare(ctx); err != nil {
		o.Log.Warn("prepare fast starts", "error", err)
	}
	return m, nil
}

// prepare has the hypervisor know what most VMs will be like.
func (m *Manager) prepare(ctx context.Context) error {
	boot, err := m.o.Boot.Boot(ctx)
	if err != nil {
		return err
	}
	return m.o.Hypervisor.Prepare(ctx, m.like(VM{Boot: boot, Memory: DefaultMemory, CPUs: defaultCPUs, NICs: make([]NIC, 1)}))
}

// like describes no VM in particular, but with hardware like vm's.
func (m *Manager) like(vm VM) VM {
	v := VM{RuntimeDir: filepath.Join(m.o.RuntimeDir, "prepared"), Boot: vm.Boot, Memory: vm.Memory, CPUs: vm.CPUs, DiskSerial: rootSerial, DiskSize: m.o.Disks.Capacity(),
		Disks: make([]Disk, len(vm.Disks)), Shares: vm.Shares}
	for i := range vm.NICs {
		v.NICs = append(v.NICs, NIC{End: endName(i)})
	}
	return v
}

// lockFile takes a lock that ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, refuse(ErrConflict, "the store's containers are managed by another process: stop the other \"vic serve\" first")
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// scan finds the containers of the store.
func (m *Manager) scan(ctx context.Context) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !ValidID(e.Name()) {
			continue
		}
		c := newContainer(m, e.Name())
		err := c.load()
		if errors.Is(err, fs.ErrNotExist) { // Create did not come to its end
			if err := c.removeFiles(true); err != nil {
				m.o.Log.Warn("remove unfinished container", "container", c.id, "error", err)
			}
			continue
		}
		if err != nil {
			m.o.Log.Warn("container is damaged", "container", c.id, "error", err)
			c.state = State{Status: Dead, Error: err.Error()}
		}
		m.containers[c.id] = c
		if c.spec.Name == "" || m.names[c.spec.Name] != nil {
			c.spec.Name = c.id[:12]
		}
		m.names[c.spec.Name] = c
	}
	for _, c := range m.List() { // some may be on their way out already
		if err := m.o.Disks.SettleContainer(c.id); err != nil {
			m.o.Log.Warn("settle disk", "container", c.id, "error", err)
		}
		c.reattach(ctx)
		if c.spec.Transient {
			m.wg.Go(c.abandon)
		}
	}
	return nil
}

// Close lets go of the containers, which run on. Attachments, Logs and
// waiters end with ErrClosed.
func (m *Manager) Close() error {
	m.mu.Lock()
	select {
	case <-m.closed:
		m.mu.Unlock()
		return nil
	default:
	}
	close(m.closed)
	all := m.list()
	m.mu.Unlock()
	var errs []error
	for _, c := range all {
		errs = append(errs, c.letGo())
	}
	errs = append(errs, m.watcher.Close())
	m.wg.Wait()
	errs = append(errs, m.closeNetworks())
	return errors.Join(append(errs, m.lock.Close())...)
}

// gather is how long after one event the next is looked at. QEMU writes each page of much output by itself, ten thousand a
// second, and events that wait for being looked at become one.
const gather = 2 * time.Millisecond

// watch tells containers that their logs have grown.
func (m *Manager) watch() {
	for {
		select {
		case e, ok := <-m.watcher.Events:
			if !ok {
				return
			}
			m.mu.Lock()
			c := m.containers[filepath.Base(filepath.Dir(e.Name))]
			m.mu.Unlock()
			if c != nil {
				c.notify()
			}
			time.Sleep(gather)
		case err, ok := <-m.watcher.Errors:
			if !ok {
				return
			}
			// Events may be lost: look at all.
			m.o.Log.Warn("watch logs", "error", err)
			for _, c := range m.List() {
				c.notify()
			}
		}
	}
}

// Create makes a container: its folder, its disk, its name. Nothing runs yet.
// Errors: ErrInvalid for a Spec that makes no sense, ErrNotImplemented for one that cannot be
// carried out yet, ErrConflict for a name in use, ErrForbidden for one that exceeds the Quota, and what Disks says, wrapped.
func (m *Manager) Create(ctx context.Context, s Spec) (*Container, error) {
	s.Network.fill()
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := m.Resources().check(&s); err != nil {
		return nil, err
	}
	if err := m.resolve(&s.Network); err != nil {
		return nil, err
	}
	if err := m.checkBinds(s.Binds); err != nil {
		return nil, err
	}
	if err := m.Available(); err != nil {
		return nil, err
	}
	id := newID()
	c := newContainer(m, id)
	c.spec, c.created, c.token, c.state = s, time.Now(), rand.Text(), State{Status: Created}
	if err := m.admit(ctx, c); err != nil {
		return nil, err
	}
	err := ctx.Err()
	if err == nil {
		if err = c.makeFiles(ctx); err != nil {
			err = errors.Join(err, c.removeFiles(true))
		}
	}
	if err != nil {
		m.forget(c)
		return nil, err
	}
	m.mu.Lock()
	m.containers[id] = c
	m.mu.Unlock()
	c.emit("create", nil)
	return c, nil
}

// makeFiles makes the container's disk, its volumes and its record.
func (c *Container) makeFiles(ctx context.Context) error {
	if err := c.makeDisk(ctx); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	if err := c.claimVolumes(); err != nil {
		return err // in docker's words
	}
	if err := c.save(); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return nil
}

func (c *Container) makeDisk(ctx context.Context) error {
	if d, ok := c.m.o.Disks.(Registered); ok {
		return d.CreateContainer(ctx, c.id, c.spec.Name, c.spec.ImageID)
	}
	_, err := c.m.o.Disks.CreateContainerDisk(c.id, c.spec.ImageID)
	return err
}

// reserve takes the container's name, making one up if it has none.
func (m *Manager) reserve(c *Container) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.full(); err != nil {
		return err
	}
	for c.spec.Name == "" {
		if name := randomName(); m.names[name] == nil {
			c.spec.Name = name
		}
	}
	if err := m.nameFree(c.spec.Name); err != nil {
		return err
	}
	m.names[c.spec.Name] = c
	return nil
}

func (m *Manager) nameFree(name string) error {
	if other := m.names[name]; other != nil {
		return refuse(ErrConflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other.id)
	}
	return nil
}

// forget drops the container from all tables.
func (m *Manager) forget(c *Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, c.id)
	if m.names[c.spec.Name] == c {
		delete(m.names, c.spec.Name)
	}
	for id, e := range m.execs {
		if e.c == c {
			delete(m.execs, id)
		}
	}
}

// Container returns the container with that ID, else with that name (a slash
// before it does not matter), else the only one whose ID begins so. The error is
// ErrNotFound, or ErrInvalid if several IDs begin so.
func (m *Manager) Container(ref string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[ref]; c != nil {
		return c, nil
	}
	if c := m.names[strings.TrimPrefix(ref, "/")]; c != nil && m.containers[c.id] != nil {
		return c, nil
	}
	return byPrefix(m.containers, ref, "No such container: "+ref)
}

// byPrefix finds the only key that begins with prefix.
func byPrefix[T any](all map[string]T, prefix, missing string) (found T, err error) {
	n := 0
	for id, v := range all {
		if prefix != "" && strings.HasPrefix(id, prefix) {
			found = v
			n++
		}
	}
	var none T
	switch n {
	case 0:
		return none, refuse(ErrNotFound, "%s", missing)
	case 1:
		return found, nil
	}
	return none, refuse(ErrInvalid, "multiple IDs found with provided prefix: %s", prefix)
}

// List returns all containers, the newest first.
func (m *Manager) List() []*Container {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list()
}

func (m *Manager) list() []*Container {
	list := make([]*Container, 0, len(m.containers))
	for _, c := range m.containers {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Container) int {
		if n := b.created.Compare(a.created); n != 0 {
			return n
		}
		return strings.Compare(a.id, b.id)
	})
	return list
}

// Exec returns the exec with that ID or unique beginning of it. The error is ErrNotFound, or ErrInvalid
// if several begin so. Execs are forgotten some time after they ended, with their
// container's run, and when the Manager closes.
func (m *Manager) Exec(ref string) (*Exec, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return byPrefix(m.execs, ref, "No such exec instance: "+ref)
}

// newID makes an ID of 64 hex digits. One of digits only would look like a number.
func newID() string {
	for {
		var b [32]byte
		rand.Read(b[:])
		if id := hex.EncodeToString(b[:]); strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

// ValidID says whether s has the form of a container's ID, or a network's.
func ValidID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}
