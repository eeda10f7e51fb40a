package vsphere

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/layerstore"
)

// onWrite has fn called before the next write.
func (x *exported) onWrite(fn func()) {
	once := func() {
		x.wrote.Store(nil)
		fn()
	}
	x.wrote.Store(&once)
}

// What fails leaves nothing attached and nothing that looks complete, and the next pull goes well.
func TestBlockWriterFaults(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	x := s.export()
	own, vm := s.appliance(c, x)
	d := s.datastore(c, "store")
	st := s.open(d, "one", own)
	ls, img := pulled(t, 3)
	fault := &types.GenericVmConfigFault{Reason: "injected"}
	for _, tt := range []struct {
		name  string
		begin func(cancel func()) // what goes wrong
		want  string              // in the error; "" if there is none
	}{
		{"attaching fails", func(func()) { s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: fault}) }, "attach disk"},
		{"attaching is done and said to have failed", func(func()) {
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: fault, Done: true})
		}, ""},
		{"detaching fails", func(func()) {
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: fault, Skip: 1})
		}, "detach disk"},
		{"the machine is busy", func(func()) {
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm", Fault: &types.TaskInProgress{}})
		}, ""},
		{"the datastore is full", func(func()) { x.room.Store(300 << 10) }, syscall.ENOSPC.Error()},
		{"the session is dropped", func(func()) {
			x.onWrite(func() {
				if err := s.DropSessions(ctx); err != nil {
					t.Error(err)
				}
			})
		}, ""},
		{"another store is opened", func(func()) { x.onWrite(func() { s.open(d, "two", own) }) }, ""},
		{"the pull is cancelled", func(cancel func()) { x.onWrite(cancel) }, context.Canceled.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			tt.begin(cancel)
			p, err := st.Publish(ctx, ls, img)
			x.room.Store(0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			if tt.name == "detaching fails" { // what a crash would leave: the next opening detaches it
				if n := len(s.attached(vm)); n != 1 {
					t.Errorf("%d disks attached", n)
				}
				s.open(d, "one", own)
			}
			if left := s.attached(vm); len(left) != 0 {
				t.Errorf("still attached: %v", left)
			}
			if err == nil {
				s.same(d, ls, img, p.Disks[0])
				if err := st.Forget(t.Context(), img.ID); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := st.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := s.files(d, "disks"); len(left) != 2 { // the base disk
				t.Errorf("left: %v", left)
			}
		})
	}

	t.Run("the own machine is lost", func(t *testing.T) {
		more := image(t, ls, 4)
		task, err := vm.PowerOff(ctx)
		if err == nil {
			err = task.Wait(ctx)
		}
		if err == nil {
			task, err = vm.Destroy(ctx)
		}
		if err == nil {
			err = task.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Publish(ctx, ls, more); err == nil || !strings.Contains(err.Error(), "0 virtual machines of") {
			t.Errorf("error %v", err)
		}
	})
}

// A device that is not what it should be is not written.
func TestBlockWriterWrongDevice(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	wrong := &wrongDevice{}
	own, _ := s.appliance(c, wrong)
	st := s.open(s.datastore(c, "store"), "one", own)
	ls, img := pulled(t, 1)
	if _, err := st.Publish(ctx, ls, img); err == nil || !strings.Contains(err.Error(), "does not show its parent") {
		t.Errorf("error %v", err)
	}
	if wrong.written || !wrong.closed {
		t.Errorf("%+v", wrong)
	}
	for _, want := range []string{"no virtual machine", "0 virtual machines"} {
		if _, err := c.FindOwnVM(ctx, "00000000-0000-0000-0000-000000000000", wrong); err == nil || !strings.Contains(err.Error(), "0 virtual machines of") {
			t.Errorf("a machine that is not there: %v, want %s", err, want)
		}
	}
}

// A wrongDevice is somebody else's disk.
type wrongDevice struct{ written, closed bool }

func (w *wrongDevice) Open(context.Context, AttachedDisk) (Device, error) { return w, nil }
func (w *wrongDevice) Gone(context.Context, AttachedDisk) error           { return nil }
func (w *wrongDevice) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}
func (w *wrongDevice) WriteAt(p []byte, _ int64) (int, error) { w.written = true; return len(p), nil }
func (w *wrongDevice) Sync() error                            { return nil }
func (w *wrongDevice) Close() error                           { w.closed = true; return nil }

func TestFlattened(t *testing.T) {
	for name, o := range map[string]vcsim.Options{"vCenter": vmfs6, "ESXi": {ESX: true, Datastores: vmfs6.Datastores}} {
		t.Run(name, func(t *testing.T) {
			s, ctx := newSite(t, o), t.Context()
			c := s.connect(s.endpoint())
			d := s.datastore(c, "store")
			st := s.open(d, "one", nil)
			if st.encoding != Flattened {
				t.Fatalf("the store has the encoding %s", st.encoding)
			}
			ls, img := pulled(t, 5)
			p, err := st.Publish(ctx, ls, img)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Disks) != 1 || p.Sent == 0 {
				t.Errorf("published %+v", p)
			}
			s.same(d, ls, img, p.Disks[0])
			s.noCarrier(c, d)
			if n := s.Calls()["HttpNfcLeaseProgress"]; n < 2 {
				t.Errorf("the lease was told of progress %d times", n)
			}
			again, err := s.open(d, "two", nil).Publish(ctx, ls, img)
			if err != nil || again.Sent != 0 || again.Disks[0] != p.Disks[0] {
				t.Errorf("again: %+v, %v", again, err)
			}
			for _, vch := range []string{"one", "two"} {
				if err := s.open(d, vch, nil).Forget(ctx, img.ID); err != nil {
					t.Fatal(err)
				}
			}
			if swept, err := st.Sweep(ctx); err != nil || len(swept.Disks) != 1 {
				t.Errorf("swept %v, %v", swept, err)
			}
			if left := s.files(d, "disks"); len(left) != 2 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// noCarrier looks for virtual machines that imports have left.
func (s *site) noCarrier(c *Session, d *Datastore) {
	s.t.Helper()
	for _, e := range s.Service.Context.Map.All("VirtualMachine") {
		if name := e.Entity().Name; strings.HasPrefix(name, carrierPrefix) {
			s.t.Errorf("virtual machine %s is left", name)
		}
	}
	for _, name := range s.files(d, "..") {
		if strings.HasPrefix(name, carrierPrefix) {
			s.t.Errorf("folder %s is left", name)
		}
	}
}

// A lease that breaks takes the disk along; one that may be whole the next time is begun again.
func TestFlattenedFaults(t *testing.T) {
	s, ctx := newSite(t, vmfs6), t.Context()
	c := s.connect(s.endpoint())
	d := s.datastore(c, "store")
	st := s.open(d, "one", nil)
	ls, img := pulled(t, 3)
	var total int64
	if p, err := st.Publish(ctx, ls, img); err != nil {
		t.Fatal(err)
	} else {
		total = p.Sent
	}
	clean := func(t *testing.T, img *layerstore.Image) {
		t.Helper()
		if err := st.Forget(ctx, img.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if left := s.files(d, "disks"); len(left) != 2 {
			t.Errorf("left: %v", left)
		}
	}
	clean(t, img)
	for _, tt := range []struct {
		name  string
		fault vcsim.TaskFault
		room  int64
		want  string // in the error
	}{
		{"the datastore is full", vcsim.TaskFault{}, total / 2, "is full"},
		{"the machine is not made", vcsim.TaskFault{Task: "Folder.createVm"}, 0, "SystemError"},
		{"detaching fails", vcsim.TaskFault{Task: "VirtualMachine.reconfigVm"}, 0, "SystemError"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.fault.Task != "" {
				s.FailTask(tt.fault)
			}
			if tt.room > 0 {
				s.FillDatastore("vmfs6", tt.room)
				defer s.FillDatastore("vmfs6", -1)
			}
			if _, err := st.Publish(ctx, ls, img); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			s.noCarrier(c, d)
			if left := s.files(d, "disks"); len(left) != 2 {
				t.Errorf("left: %v", left)
			}
		})
	}

	// What breaks half way and may be whole the next time is begun again.
	for name, fault := range map[string]func() error{
		"the connection breaks":  func() error { return errors.Join(s.Away(), s.Return()) },
		"the session is dropped": func() error { return s.DropSessions(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			chain, err := ls.OpenDisk(img.Chain())
			if err != nil {
				t.Fatal(err)
			}
			defer chain.Close()
			tries := 0
			top := newName(img.Chain())
			err = d.importDisk(ctx, Place{}, imported{name: "disks/" + top + ".vmdk", capacity: capacity, bound: total,
				write: func(w io.Writer) error { return chain.WriteStream(w, top+".vmdk", 1) },
				progress: func(sent int64) {
					if sent == 0 {
						tries++
					}
					if fault != nil && sent > total/2 {
						if err := fault(); err != nil {
							t.Error(err)
						}
						fault = nil
					}
				}})
			if err != nil || tries != 2 {
				t.Fatalf("%v after %d tries", err, tries)
			}
			s.noCarrier(c, d)
			s.same(d, ls, img, top)
			clean(t, img)
		})
	}
	t.Run("the layer cannot be read", func(t *testing.T) {
		broken := errors.New("the layer's file is gone")
		err := d.importDisk(ctx, Place{}, imported{name: "disks/x.vmdk", capacity: capacity, bound: 1,
			write: func(w io.Writer) error { _, err := w.Write([]byte("KDMV")); return errors.Join(err, broken) }, progress: func(int64) {}})
		if !errors.Is(err, broken) {
			t.Error(err)
		}
		s.noCarrier(c, d)
	})
	t.Run("what is sent is no disk", func(t *testing.T) {
		err := d.importDisk(ctx, Place{}, imported{name: "disks/x.vmdk", capacity: capacity, bound: 1,
			write: func(w io.Writer) error { _, err := w.Write(make([]byte, 4096)); return err }, progress: func(int64) {}})
		if err == nil || !strings.Contains(err.Error(), "500") {
			t.Error(err)
		}
		s.noCarrier(c, d)
	})
	t.Run("a wrong place", func(t *testing.T) {
		for _, at := range []Place{{Pool: "nope"}, {Folder: "nope"}} {
			if err := d.importDisk(ctx, at, imported{name: "disks/x.vmdk"}); err == nil || !strings.Contains(err.Error(), "nope") {
				t.Errorf("%+v: %v", at, err)
			}
		}
	})
}

// Each datastore gets the encoding that it can have.
func TestEncoding(t *testing.T) {
	for _, tt := range []struct {
		kind      string
		appliance bool
		ask       Encoding
		want      Encoding
		refused   string
	}{
		{vcsim.VMFS5, false, "", VMFSSparse, ""},
		{vcsim.NFS, true, "", VMFSSparse, ""},
		{vcsim.VMFS6, true, "", BlockWriter, ""},
		{vcsim.VMFS6, false, "", Flattened, ""},
		{vcsim.VSAN, true, "", BlockWriter, ""},
		{vcsim.VSAN, false, "", Flattened, ""},
		{vcsim.VMFS5, false, Flattened, Flattened, ""},
		{vcsim.VMFS6, false, Hosted, Hosted, ""},
		{vcsim.VMFS6, true, VMFSSparse, "", "VMFS 6.82 has no vmfsSparse deltas"},
		{vcsim.VMFS6, false, BlockWriter, BlockWriter, ""},
		{vcsim.VMFS6, false, "qcow2", "", "there are vmfsSparse"},
	} {
		s, ctx := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Type: tt.kind}, {Name: "other"}}}), t.Context()
		c := s.connect(s.endpoint())
		d, err := c.OpenDatastore(ctx, "", "ds", "store")
		if err != nil {
			t.Fatal(err)
		}
		o := StoreOptions{VCH: "a", Capacity: capacity, Encoding: tt.ask}
		if tt.appliance {
			o.Own, _ = s.appliance(c, &wrongDevice{})
		}
		st, err := OpenStore(ctx, d, o)
		switch {
		case (tt.kind == vcsim.VSAN) != (s.Calls()["CreateDirectory"] > 0):
			t.Errorf("%+v: %v", tt, s.Calls())
		case tt.refused == "" && (err != nil || st.encoding != tt.want):
			t.Errorf("%+v: %v", tt, err)
		case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%+v: error %v", tt, err)
		case tt.refused != "" && len(s.files(d, ".")) != 0:
			t.Errorf("%+v: left %v", tt, s.files(d, "."))
		}
		if err == nil { // what is recorded counts
			o.Encoding = VMFSSparse
			if st, err = OpenStore(ctx, d, o); err != nil || st.encoding != tt.want {
				t.Errorf("%+v: again %v, %v", tt, st, err)
			}
		}
	}
}
