package vsphere

import (
	"bytes"
	"encoding/json"
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

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		kind, shown string
		want        Encoding
	}{
		{vcsim.VMFS5, "VMFS 5.81", VMFSSparse},
		{vcsim.NFS, "NFS", VMFSSparse},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			s, ctx := newSite(t, vcsim.Options{Datastores: []vcsim.Datastore{{Name: "ds", Type: tt.kind}}}), t.Context()
			d := s.datastore(s.connect(s.endpoint()), "store")
			tried := 0
			r, err := d.Probe(ctx, ProbeOptions{Tried: func(Trial) { tried++ }})
			if err != nil {
				t.Fatal(err)
			}
			if r.Kind != tt.shown || r.Encoding != tt.want || tried != len(r.Trials) || len(r.Left) != 0 {
				t.Errorf("report %+v, told of %d trials", r, tried)
			}
			for _, x := range r.Trials {
				if x.Outcome == Refused {
					t.Errorf("%+v", x)
				}
			}
			if left := s.files(d, "."); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			var text bytes.Buffer
			if err := r.Print(&text); err != nil || !strings.Contains(text.String(), string(tt.want)) {
				t.Errorf("%v:\n%s", err, &text)
			}
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
