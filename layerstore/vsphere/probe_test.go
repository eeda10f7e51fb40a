package vsphere

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"vic/bench/vcsim"
)

// trial is what a report says of one.
func (r *ProbeReport) trial(name string) Trial {
	for _, t := range r.Trials {
		if t.Name == name {
			return t
		}
	}
	return Trial{}
}

// The simulator cannot do these.
var unsimulated = []string{trialCreate, trialTicket}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		kind  string
		esx   bool
		own   bool
		fail  func(*site)
		fails []string // the trials that fail, with what follows from them skipped
		want  Encoding
	}{
		{"VMFS5", vcsim.VMFS5, false, true, nil, nil, VMFSSparse},
		{"ESXi", vcsim.NFS, true, false, nil, nil, VMFSSparse},
		{"deltas are no parents", vcsim.VMFS5, false, true, func(s *site) {
			s.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
		}, []string{trialOnDelta}, BlockWriter},
		{"no VM starts over deltas", vcsim.VMFS5, false, false, func(s *site) {
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn"})
		}, []string{trialDeltaOn}, BlockWriter},
		{"no deep chain", vcsim.VMFS5, false, false, func(s *site) {
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.powerOn", Skip: 1})
		}, []string{trialDepth}, BlockWriter},
		{"no delta and no hot-add", vcsim.VMFS5, false, false, func(s *site) {
			s.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
			s.FailTask(vcsim.TaskFault{Task: "VirtualMachine.reconfigVm"})
		}, []string{trialOnDelta, trialHotAdd}, Flattened},
		{"no delta and no child", vcsim.VMFS5, false, false, func(s *site) {
			s.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
			s.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
		}, []string{trialOnDelta, trialChild}, Flattened},
		{"nothing but files", vcsim.VMFS5, false, false, func(s *site) {
			for range 3 {
				s.FailTask(vcsim.TaskFault{Task: "Folder.createVm"})
			}
		}, []string{trialOnDelta, trialChild, trialImport}, ""},
		{"a full datastore", vcsim.VMFS5, false, false, func(s *site) { s.FillDatastore("ds", 1<<20) }, []string{trialFiles}, ""},
	} {
		if testing.Short() && tt.name != "deltas are no parents" {
			continue // the others have no goroutines more
		}
		t.Run(tt.name, func(t *testing.T) {
			s, ctx := newSite(t, vcsim.Options{ESX: tt.esx, Datastores: []vcsim.Datastore{{Name: "ds", Type: tt.kind}}}), t.Context()
			c := s.connect(s.endpoint())
			d := s.datastore(c, "store")
			if err := d.MakeFolder(ctx, "."); err != nil {
				t.Fatal(err)
			}
			var o ProbeOptions
			if tt.own {
				o.Own, _ = s.appliance(c, s.export())
			}
			if tt.fail != nil {
				tt.fail(s)
			}
			tried := 0
			o.Tried = func(Trial) { tried++ }
			r, err := d.Probe(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			if r.Encoding != tt.want || tried != len(r.Trials) || len(r.Left) != 0 {
				t.Errorf("encoding %q, want %q, because %s; told of %d trials; left %v", r.Encoding, tt.want, r.Reason, tried, r.Left)
			}
			for _, x := range r.Trials {
				switch {
				case slices.Contains(unsimulated, x.Name):
				case x.Outcome == Refused != slices.Contains(tt.fails, x.Name):
					t.Errorf("%+v", x)
				case x.Outcome == Skipped && len(tt.fails) == 0 && (x.Name != trialWrite || tt.own):
					t.Errorf("%+v", x)
				}
			}
			if left := s.files(d, "."); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			s.noProbe()
			var text bytes.Buffer
			if err := r.Print(&text); err != nil || !strings.Contains(text.String(), cmp.Or(string(tt.want), "none")) {
				t.Errorf("%v:\n%s", err, &text)
			}
			t.Logf("\n%s", &text)
			out, err := json.Marshal(r)
			var back ProbeReport
			if err == nil {
				err = json.Unmarshal(out, &back)
			}
			if err != nil || back.Encoding != tt.want || len(back.Trials) != tried {
				t.Errorf("as JSON: %v\n%s", err, out)
			}
		})
	}
}

// noProbe looks for virtual machines and folders that a probe has left.
func (s *site) noProbe() {
	s.t.Helper()
	for _, e := range s.Service.Context.Map.All("VirtualMachine") {
		if name := e.Entity().Name; isProbe(name) || strings.HasPrefix(name, carrierPrefix) {
			s.t.Errorf("virtual machine %s is left", name)
		}
	}
	for _, folder := range s.Folders() {
		list, err := os.ReadDir(folder)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range list {
			if isProbe(e.Name()) || strings.HasPrefix(e.Name(), carrierPrefix) {
				s.t.Errorf("folder %s is left", e.Name())
			}
		}
	}
}

// A probe that is broken off cleans up, and what one that was killed has left is named.
func TestProbeBrokenOff(t *testing.T) {
	s := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Type: vcsim.VMFS5}}})
	d := s.datastore(s.connect(s.endpoint()), "store")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := d.Probe(ctx, ProbeOptions{Tried: func(x Trial) {
		if x.Name == trialChildOn {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || r == nil || r.trial(trialChildOn).Outcome != Works || r.trial(trialHotAdd).Outcome != Skipped || len(r.Left) != 0 {
		t.Errorf("%v: %+v", err, r)
	}
	if left := s.files(d, "."); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	s.noProbe()

	s.createVM(probePrefix + "old-child")
	if err := d.MakeFolder(t.Context(), probePrefix+"old"); err != nil {
		t.Fatal(err)
	}
	r, err = d.Probe(t.Context(), ProbeOptions{})
	if err != nil || len(r.Left) != 2 || !strings.Contains(r.Left[0], "store/"+probePrefix+"old") || r.Left[1] != "virtual machine "+probePrefix+"old-child" {
		t.Errorf("%v: left %v", err, r.Left)
	}

	// A server that goes away: the report says what was seen, and what may be left.
	s2 := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Type: vcsim.VMFS5}}})
	d2 := s2.datastore(s2.connect(s2.endpoint()), "store")
	r, err = d2.Probe(t.Context(), ProbeOptions{Tried: func(x Trial) {
		if x.Name == trialChild {
			if err := s2.Away(); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil || r.trial(trialChildOn).Outcome != Refused || len(r.Left) == 0 {
		t.Errorf("%v: %+v", err, r)
	}
	if _, err := d2.Probe(t.Context(), ProbeOptions{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a server that is away: %v", err)
	}
}

func TestSerial(t *testing.T) {
	for serial, want := range map[string]string{
		"VMware-56 4d 8a 9c 3b 1e 6f 42-9a 00 11 22 33 44 55 66\n": "564d8a9c-3b1e-6f42-9a00-112233445566",
		"VMware-42 3B 7E 9c 3b 1e 6f 42-9a 00 11 22 33 44 55 FF":   "423b7e9c-3b1e-6f42-9a00-1122334455ff",
		"VMware-56 4d": "",
		"Dell-1234":    "",
		"VMware-zz 4d 8a 9c 3b 1e 6f 42-9a 00 11 22 33 44 55 66": "",
	} {
		got, err := parseSerial(serial)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", serial, got, err, want)
		}
	}
}
