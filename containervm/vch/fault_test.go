package vch

import (
	"context"
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
		{"API that does not answer", func() { l.refuses.Store(true) }, "the API at " + l.ip + ":2376 does not answer: 503"},
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
