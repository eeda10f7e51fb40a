package vch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/vcsim"
)

// What fails leaves nothing, and the same again goes well. What a process left that died is gone on with.
func TestCreateFails(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	before := l.everything()
	task := func(name string, done bool) func() {
		return func() { l.FailTask(vcsim.TaskFault{Task: name, Done: done}) }
	}
	for _, tt := range []struct {
		name string
		harm func()
		want string // in the error; "" is none
	}{
		{"VM not made", task("Folder.createVm", false), "make VM vch1"},
		{"VM made, but the task fails", task("Folder.createVm", true), "make VM vch1"},
		{"disk not made", task("VirtualDiskManager.createVirtualDisk", false), "make disk [datastore1] vch1/state.vmdk"},
		{"disk made, but the task fails", task("VirtualDiskManager.createVirtualDisk", true), "make disk"},
		{"not powered on", task("VirtualMachine.powerOn", false), "power on vch1"},
		{"powered on, but the task fails", task("VirtualMachine.powerOn", true), "power on vch1"},
		{"datastore full", func() { l.FillDatastore("datastore1", 100<<10) }, "upload"},
		{"API that does not answer", func() { l.refuses.Store(true) }, "the API at " + l.ip + ":2376 does not answer, after 1s: 503"},
		{"session dropped", func() {
			if err := l.DropSessions(t.Context()); err != nil {
				t.Error(err)
			}
		}, ""},
		{"upload broken", func() { l.BreakUpload(0.5) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.T = t
			o := l.options()
			o.Timeout = time.Second
			plan, err := l.site.Create(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			tt.harm()
			err = plan.Run(t.Context(), RunOptions{})
			l.FillDatastore("datastore1", -1)
			l.refuses.Store(false)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				l.delete("vch1", DeleteOptions{})
			} else if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			l.same(l.everything(), before)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		l.T = t
		plan, err := l.site.Create(t.Context(), l.options())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		err = plan.Run(ctx, RunOptions{Report: func(e Event) {
			if strings.HasPrefix(e.Text, "power on") {
				cancel()
			}
		}})
		if err == nil {
			t.Error("it was carried out")
		}
		l.same(l.everything(), before)
	})
	for _, last := range []string{"claim folder", "upload", "make disk", "make resource pool", "make folder", "make VM", "power on", "wait for"} {
		t.Run("killed at "+last, func(t *testing.T) {
			l.T = t
			plan, err := l.site.Create(t.Context(), l.options())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			err = plan.Run(ctx, RunOptions{Keep: true, Report: func(e Event) {
				if strings.HasPrefix(e.Text, last) {
					cancel()
				}
			}})
			if err == nil {
				t.Error("it was carried out")
			}
			l.create(l.options())
			l.delete("vch1", DeleteOptions{})
			l.same(l.everything(), before)
		})
	}
}

// An ISO that was uploaded is not uploaded again, nor is a VCH another that was lost with its appliance.
func TestCreateAgain(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	before := l.everything()
	first := l.create(l.options())
	if err := l.site.removeAppliance(t.Context(), first.machine()); err != nil {
		t.Fatal(err)
	}
	puts := l.Calls()["PUT /folder"]
	again := l.create(l.options())
	if again.ID != first.ID {
		t.Errorf("it is %s, and was %s", again.ID, first.ID)
	}
	if n := l.Calls()["PUT /folder"] - puts; n != 2 { // the record, twice
		t.Errorf("%d uploads", n)
	}
	l.delete("vch1", DeleteOptions{})
	l.same(l.everything(), before)
}

// An appliance that somebody took out of the inventory is made again over the files that it left. If that fails, what the VCH has noted in the
// image store stays, by which its images do.
func TestCreateOverLeftovers(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	before := l.everything()
	first := l.create(l.options())
	folder := l.Folder("datastore1")
	console, note := filepath.Join(folder, "vch1", applianceFolder, consoleFile), filepath.Join(folder, "vic", "vchs", "vch1", "images", "a")
	for _, file := range []string{console, note, filepath.Join(folder, "vch1", mediaFolder, "a.iso")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	vm := first.machine()
	if err := first.site.powerOff(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	if err := vm.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn"})
	plan, err := l.site.Create(t.Context(), l.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Run(t.Context(), RunOptions{}); err == nil {
		t.Error("power on failed, and it was carried out")
	}
	if _, err := os.Stat(note); err != nil {
		t.Errorf("the image store was left: %v", err)
	}
	if again := l.create(l.options()); again.ID != first.ID {
		t.Errorf("it is %s, and was %s", again.ID, first.ID)
	}
	l.delete("vch1", DeleteOptions{})
	l.same(l.everything(), before)
}

// Of two changes that were planned at once, the second is refused while the first is at work and when it has ended, and takes nothing of it back.
func TestChangesAtOnce(t *testing.T) {
	l := newLab(t, vcsim.Options{})
	l.serve()
	l.create(l.options())
	v := l.find("vch1")
	plan := func(v *VCH) *Plan {
		t.Helper()
		o := l.options()
		c := ConfigureOptions{Spec: v.Spec, Access: o.Access, TLS: o.TLS, Version: o.Version, Timeout: o.Timeout}
		c.Spec.Debug = true
		p, err := v.Configure(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second, third := plan(v), plan(l.find("vch1")), plan(l.find("vch1"))
	err := first.Run(t.Context(), RunOptions{Report: func(e Event) {
		if !strings.HasPrefix(e.Text, "shut VM") {
			return
		}
		if err := second.Run(t.Context(), RunOptions{}); err == nil || !strings.Contains(err.Error(), "in the middle of configure") {
			t.Errorf("the second, while the first is at work: %v", err)
		}
		if doing, err := l.find("vch1").Doing(t.Context()); doing != "configure" || err != nil {
			t.Errorf("then it is in the middle of %q, %v", doing, err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Run(t.Context(), RunOptions{}); err == nil || !strings.Contains(err.Error(), "was changed since") {
		t.Errorf("the third, after the first: %v", err)
	}
	l.delete("vch1", DeleteOptions{})
}
