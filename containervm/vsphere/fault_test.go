package vsphere

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
)

// TestFaults has tasks fail, before and after they did what they are for. Who asks again gets what was asked for, and nothing is left.
func TestFaults(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	ctx := t.Context()
	live := func(id string) error {
		m, err := s.Start(ctx, s.spec(id))
		if err != nil {
			return err
		}
		defer m.Close()
		if err := m.Kill(); err != nil {
			return err
		}
		s.wait(m)
		return nil
	}
	n := 0
	for _, done := range []bool{false, true} {
		for _, tt := range []struct {
			task string
			skip int
			goes bool // what was asked for is so, whatever the task says
			do   func(id string) error
		}{
			{"Folder.createVm", 0, false, func(id string) error { return s.CreateContainer(ctx, id, "box", s.image.ID) }},
			{"VirtualMachine.reconfigVm", 0, false, live},
			{"Datacenter.powerOnMultiVM", 0, done, live},
			{"VirtualMachine.powerOn", 0, done, live},
			{"VirtualMachine.destroy", 0, false, s.RemoveContainer},
			{"FileManager.deleteDatastoreFile", 1, false, s.RemoveContainer}, // the simulator has such a task in destroying a VM
		} {
			n++
			t.Run(fmt.Sprintf("%s, done %t", tt.task, done), func(t *testing.T) {
				id := fmt.Sprintf("%064x", n+0x100)
				made := tt.task != "Folder.createVm"
				if made {
					if err := s.CreateContainer(ctx, id, "box", s.image.ID); err != nil {
						t.Fatal(err)
					}
					s.write(id, 1, "a log, which is not the VM's")
				}
				s.sim.FailTask(vcsim.TaskFault{Task: tt.task, Skip: tt.skip, Done: done, Fault: &types.GenericVmConfigFault{Reason: "injected"}})
				if err := tt.do(id); (err == nil) != tt.goes {
					t.Errorf("got %v, want that it goes: %t", err, tt.goes)
				}
				if made {
					if err := tt.do(id); err != nil {
						t.Errorf("again: %v", err)
					}
				}
				if err := s.RemoveContainer(id); err != nil {
					t.Errorf("remove: %v", err)
				}
				if s.vm(id) != nil {
					t.Error("the VM is still there")
				}
				for _, path := range []string{s.folderOf(id), s.file(id, "")} {
					if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s is still there: %v", path, err)
					}
				}
			})
		}
	}
	t.Run("VirtualMachine.powerOff", func(t *testing.T) {
		id := s.create(99)
		m := s.start(s.spec(id))
		s.sim.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOff"})
		if err := m.Kill(); err != nil { // which does not wait
			t.Fatal(err)
		}
		m.kills.Wait()
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		s.wait(m)
	})
}
