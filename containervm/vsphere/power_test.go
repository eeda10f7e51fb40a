package vsphere

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"vic/bench/vcsim"
	"vic/containervm"
	datastore "vic/layerstore/vsphere"
)

const (
	connected    = types.VirtualMachineConnectionStateConnected
	disconnected = types.VirtualMachineConnectionStateDisconnected
)

func TestPower(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before power
		told   told
		want   power
	}{
		{"nothing is told", off, told{}, off},
		{"on", off, told{state: on, connection: connected}, on},
		{"off", on, told{state: off, connection: connected}, off},
		{"off, in the first look", gone, told{state: off, connection: connected}, off},
		{"on, and the host is away", on, told{state: on, connection: disconnected}, on},
		{"off, and the host is away", on, told{state: off, connection: disconnected}, on},
		{"off, and its files are away", suspended, told{state: off, connection: types.VirtualMachineConnectionStateInaccessible}, suspended},
		{"off, and it is not on its host", on, told{state: off, connection: types.VirtualMachineConnectionStateOrphaned}, on},
		{"off before the host was away", off, told{state: off, connection: disconnected}, off},
		{"off and away in the first look", gone, told{state: off, connection: disconnected}, unknown},
		{"unknown stays", unknown, told{state: off, connection: disconnected}, unknown},
		{"unknown, and the host is back", unknown, told{state: off, connection: connected}, off},
		{"the host has failed", on, told{state: off, connection: connected, crashed: true}, off},
		{"the host has failed, HA knows the VM", on, told{state: off, connection: connected, crashed: true, protected: true}, on},
		{"HA has given up", on, told{state: off, connection: connected, crashed: true}, off},
		{"HA knows a VM that was powered off", on, told{state: off, connection: connected, protected: true}, off},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.told.power(tt.before); got != tt.want {
				t.Errorf("got %q, want %q (%s)", got, tt.want, tt.told.doubt())
			}
		})
	}
	all := told{}
	for name, val := range map[string]any{"runtime.powerState": off, "runtime.connectionState": disconnected, "runtime.cleanPowerOff": false,
		"runtime.dasVmProtection": types.VirtualMachineRuntimeInfoDasProtectionState{DasProtected: true}} {
		all.set(types.PropertyChange{Name: name, Val: val})
	}
	yes := false
	if want := tellOf(types.VirtualMachineRuntimeInfo{PowerState: off, ConnectionState: disconnected, CleanPowerOff: &yes,
		DasVmProtection: &types.VirtualMachineRuntimeInfoDasProtectionState{DasProtected: true}}); all != want || !all.crashed || !all.protected {
		t.Errorf("told %+v, want %+v", all, want)
	}
	all.set(types.PropertyChange{Name: "runtime.cleanPowerOff"})
	all.set(types.PropertyChange{Name: "runtime.dasVmProtection"})
	if all.crashed || all.protected {
		t.Errorf("told %+v of what is unset", all)
	}
}

// TestHostAway has hosts go away with VMs on them.
func TestHostAway(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	ctx := t.Context()
	alive := func(m *machine) {
		t.Helper()
		select {
		case <-m.Done():
			t.Fatal("a VM has ended that may run")
		default:
		}
	}
	is := func(id string, want told) {
		t.Helper()
		s.until("it is told", func() bool { return s.watch.lookUp(UUID(id)).told == want })
	}
	runtime := func(id string, change func(r *types.VirtualMachineRuntimeInfo)) {
		t.Helper()
		r := s.config(id).Runtime
		change(&r)
		s.change(s.vm(id).Reference(), "runtime", r)
	}
	fails := func(r *types.VirtualMachineRuntimeInfo) {
		r.PowerState, r.CleanPowerOff = off, types.NewBool(false)
	}
	protect := func(r *types.VirtualMachineRuntimeInfo) {
		r.DasVmProtection = &types.VirtualMachineRuntimeInfoDasProtectionState{DasProtected: true}
	}
	back := func(r *types.VirtualMachineRuntimeInfo) {
		r.PowerState, r.ConnectionState, r.CleanPowerOff = on, connected, nil
	}

	t.Run("it comes back", func(t *testing.T) {
		id := s.create(1)
		spec := s.spec(id)
		m := s.start(spec)
		runtime(id, func(r *types.VirtualMachineRuntimeInfo) { r.PowerState, r.ConnectionState = off, disconnected })
		is(id, told{state: off, connection: disconnected})
		alive(m)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		s.Driver.Close()
		s.open() // a VCH that was not there before
		found, err := s.Find(ctx, spec)
		if err != nil {
			t.Fatalf("find a VM of which nobody knows whether it runs: %v", err)
		}
		defer found.Close()
		if _, err := s.Start(ctx, spec); !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "it is disconnected") {
			t.Errorf("start: %v", err)
		}
		runtime(id, back)
		is(id, told{state: on, connection: connected})
		alive(found.(*machine))
		runtime(id, fails)
		s.wait(found)
		if got := found.Info().Reason; !strings.Contains(got, "has failed") {
			t.Errorf("it ended for %q", got)
		}
	})
	t.Run("HA", func(t *testing.T) {
		id := s.create(2)
		m := s.start(s.spec(id))
		runtime(id, protect)
		bell := s.take(m.uuid + " " + BellService)
		s.write(id, 1, "one ")
		ring(t, bell)
		s.has(m.vm.Log, "one ")
		bell.Close()
		runtime(id, fails)
		is(id, told{state: off, connection: connected, crashed: true, protected: true})
		alive(m)
		runtime(id, back)
		alive(m)
		s.write(id, 1, "two ") // the new run's: the host appends
		bell = s.take(m.uuid + " " + BellService)
		s.has(m.vm.Log, "one two ")
	})
	t.Run("HA that finds no host", func(t *testing.T) {
		id := s.create(3)
		spec := s.spec(id)
		m := s.start(spec)
		runtime(id, protect)
		runtime(id, fails)
		is(id, told{state: off, connection: connected, crashed: true, protected: true})
		alive(m)
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		s.wait(m)
		m.Close()
		if _, err := s.Find(ctx, spec); !errors.Is(err, containervm.ErrNoMachine) {
			t.Errorf("find: %v", err)
		}
		s.start(spec)
	})
}
