package api

import (
	"errors"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
)

// Whatever a client can send has a line in the tables: a field that a newer version of the types adds
// must be thought about.
func TestOptionsCoverEveryField(t *testing.T) {
	for _, tt := range []struct {
		name  string
		table []option
		body  any
	}{
		{"create", options, createBody{}},
		{"endpoint", endpointOptions, network.EndpointSettings{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := leaves("", reflect.TypeOf(tt.body))
			var got []string
			for _, o := range tt.table {
				if slices.Contains(got, o.field) {
					t.Errorf("%s has two lines", o.field)
				}
				got = append(got, o.field)
				if o.why == "" && !isAll(o) {
					t.Errorf("%s may be refused without a reason", o.field)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				for _, f := range want {
					if !slices.Contains(got, f) {
						t.Errorf("%s has no line", f)
					}
				}
				for _, f := range got {
					if !slices.Contains(want, f) {
						t.Errorf("%s is no field of the body", f)
					}
				}
			}
		})
	}
}

func isAll(o option) bool {
	return reflect.ValueOf(o.takes).Pointer() == reflect.ValueOf(all).Pointer()
}

// leaves are the fields of a body as options names them: HostConfig's one by one, others whole.
func leaves(prefix string, typ reflect.Type) []string {
	var out []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		switch {
		case f.Anonymous:
			out = append(out, leaves(prefix, ft)...)
		case f.Name == "HostConfig":
			out = append(out, leaves("HostConfig.", ft)...)
		case f.Name == "NetworkingConfig": // setNetwork and endpointOptions
		default:
			out = append(out, prefix+f.Name)
		}
	}
	return out
}

// A plain docker run must not be refused for what the client always sends.
func TestOptionsOfPlainRun(t *testing.T) {
	f, err := os.Open("testdata/create.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var body createBody
	if err := decodeJSON(f, &body); err != nil {
		t.Fatal(err)
	}
	if err := checkOptions(options, &body); err != nil {
		t.Errorf("refused: %v", err)
	}
	if body.Image != "bb" || body.HostConfig == nil || body.NetworkingConfig == nil {
		t.Errorf("body was not read whole: %+v", body)
	}
}

func TestOptionsRefused(t *testing.T) {
	const yet, never = http.StatusNotImplemented, http.StatusBadRequest
	for _, tt := range []struct {
		name, body string
		status     int // 0: honoured
		word       string
	}{
		{"nothing", `{}`, 0, ""},
		{"volume", `{"HostConfig":{"Binds":["a:/b"],"VolumeDriver":"local","VolumesFrom":["c"]}}`, 0, ""},
		{"volume mount", `{"HostConfig":{"Mounts":[{"Type":"volume","Source":"a","Target":"/b"}]}}`, 0, ""},
		{"image mount", `{"HostConfig":{"Mounts":[{"Type":"image","Source":"a","Target":"/b"}]}}`, never, "--mount"},
		{"tmpfs mount", `{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/b"}]}}`, 0, ""},
		{"anonymous volume", `{"Volumes":{"/data":{}}}`, 0, ""},
		{"restart always", `{"HostConfig":{"RestartPolicy":{"Name":"always"}}}`, 0, ""},
		{"restart of compose", `{"HostConfig":{"RestartPolicy":{"Name":"","MaximumRetryCount":0}}}`, 0, ""},
		{"cpu shares", `{"HostConfig":{"CpuShares":3}}`, never, "--cpu-shares"},
		{"half a cpu", `{"HostConfig":{"NanoCpus":500000000}}`, 0, ""},
		{"two cpus", `{"HostConfig":{"NanoCpus":2000000000}}`, 0, ""},
		{"host network", `{"HostConfig":{"NetworkMode":"host"}}`, never, "--network"},
		{"another container's network", `{"HostConfig":{"NetworkMode":"container:x"}}`, never, "--network"},
		{"a network", `{"HostConfig":{"NetworkMode":"front"}}`, 0, ""},
		{"no network", `{"HostConfig":{"NetworkMode":"none"}}`, 0, ""},
		{"gpus", `{"HostConfig":{"DeviceRequests":[{"Count":-1}]}}`, never, "--gpus"},
		{"device", `{"HostConfig":{"Devices":[{"PathOnHost":"/dev/null"}]}}`, never, "--device"},
		{"health check", `{"Healthcheck":{"Test":["CMD","true"]}}`, 0, ""},
		{"no health check", `{"Healthcheck":{"Test":["NONE"]}}`, 0, ""},
		{"pid host", `{"HostConfig":{"PidMode":"host"}}`, never, "--pid"},
		{"ipc private", `{"HostConfig":{"IpcMode":"private"}}`, 0, ""},
		{"no new privileges", `{"HostConfig":{"SecurityOpt":["no-new-privileges"]}}`, 0, ""},
		{"seccomp profile", `{"HostConfig":{"SecurityOpt":["seccomp={}"]}}`, never, "--security-opt"},
		{"unconfined", `{"HostConfig":{"SecurityOpt":["seccomp=unconfined","label:disable"]}}`, 0, ""},
		{"log driver", `{"HostConfig":{"LogConfig":{"Type":"syslog"}}}`, never, "--log-driver"},
		{"log option", `{"HostConfig":{"LogConfig":{"Config":{"max-size":"1m"}}}}`, 0, ""},
		{"swappiness of compose", `{"HostConfig":{"MemorySwappiness":null}}`, 0, ""},
		{"swappiness", `{"HostConfig":{"MemorySwappiness":60}}`, never, "--memory-swappiness"},
		{"umask 0", `{"HostConfig":{"Umask":0}}`, 0, ""},
		{"cap drop", `{"HostConfig":{"CapDrop":["ALL"]}}`, 0, ""},
		{"host's control groups", `{"HostConfig":{"CgroupnsMode":"host"}}`, never, "--cgroupns"},
		{"another container's host name", `{"HostConfig":{"UTSMode":"host"}}`, never, "--uts"},
		{"kernel memory of old clients", `{"HostConfig":{"KernelMemory":1}}`, never, "--kernel-memory"},
		{"unknown field", `{"Frobnicate":true,"HostConfig":{"Frobnicate":1}}`, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := new(createBody)
			if err := decodeJSON(strings.NewReader(tt.body), body); err != nil {
				t.Fatal(err)
			}
			err := checkOptions(options, body)
			if tt.status == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			var se *statusError
			if !errors.As(err, &se) || se.status != tt.status || !strings.Contains(err.Error(), tt.word) {
				t.Errorf("got %v, want status %d and the word %s", err, tt.status, tt.word)
			}
		})
	}
}
