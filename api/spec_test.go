package api

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/containervm"
)

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// imageOf is an image's config with a command.
func imageOf(cmd ...string) *dockerspec.DockerOCIImageConfig {
	return &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Cmd: cmd}}
}

func specFrom(t *testing.T, text string, img *dockerspec.DockerOCIImageConfig) (containervm.Spec, *createBody, error) {
	t.Helper()
	var body createBody
	if err := decodeJSON(strings.NewReader(text), &body); err != nil {
		t.Fatal(err)
	}
	if body.HostConfig == nil {
		body.HostConfig = new(hostConfig)
	}
	if err := checkValues(body.HostConfig); err != nil {
		return containervm.Spec{}, nil, err
	}
	if err := fillIn(&body, maxVersion); err != nil {
		return containervm.Spec{}, nil, err
	}
	if err := merge(body.Config, img); err != nil {
		return containervm.Spec{}, nil, err
	}
	s, err := specOf(&body, testResources)
	return s, &body, err
}

func TestMergeCommand(t *testing.T) {
	img := imageOf("image-arg")
	img.Entrypoint = []string{"image-entry"}
	for _, tt := range []struct {
		name, body string
		want       []string
	}{
		{"image's", `{"Image":"x"}`, []string{"image-entry", "image-arg"}},
		{"command", `{"Cmd":["a"]}`, []string{"image-entry", "a"}},
		{"entrypoint", `{"Entrypoint":["e"]}`, []string{"e"}},
		{"both", `{"Entrypoint":["e"],"Cmd":["a"]}`, []string{"e", "a"}},
		{"no entrypoint", `{"Entrypoint":[""],"Cmd":["a"]}`, []string{"a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := specFrom(t, tt.body, img)
			if err != nil || !slices.Equal(s.Args, tt.want) {
				t.Errorf("got %q, %v, want %q", s.Args, err, tt.want)
			}
		})
	}
	if _, _, err := specFrom(t, `{"Image":"x"}`, imageOf()); err == nil || err.Error() != "no command specified" {
		t.Errorf("without any command: %v", err)
	}
}

func TestMergeEnv(t *testing.T) {
	for _, tt := range []struct {
		name        string
		user, image []string
		want        []string
		ok          bool
	}{
		{"none", nil, nil, []string{}, true},
		{"over", []string{"A=2", "C=3"}, []string{"A=1", "B=1"}, []string{"A=2", "C=3", "B=1"}, true},
		{"taken away", []string{"A"}, []string{"A=1", "B=1"}, []string{"A", "B=1"}, true},
		{"guest's own taken away", []string{"HOSTNAME", "PATH", "X"}, []string{"PATH=/x", "TERM", "B=1"}, []string{"HOSTNAME", "PATH", "X", "TERM", "B=1"}, true},
		{"taken away after all", []string{"A=1", "A"}, []string{"A=1"}, []string{"A"}, true},
		{"image's first counts", nil, []string{"A=1", "A=2"}, []string{"A=1"}, true},
		{"last counts", []string{"A=1", "B=1", "A=2"}, nil, []string{"A=2", "B=1"}, true},
		{"set empty", []string{"A="}, []string{"A=1"}, []string{"A="}, true},
		{"equals sign in value", []string{"A=b=c"}, nil, []string{"A=b=c"}, true},
		{"no name", []string{"=x"}, nil, nil, false},
		{"empty", []string{""}, nil, nil, false},
		{"NUL", []string{"A=\x00"}, nil, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mergeEnv(tt.user, tt.image)
			if !slices.Equal(got, tt.want) || (err == nil) != tt.ok {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestSpecOf(t *testing.T) {
	s, body, err := specFrom(t, `{
		"Image":"bb","Cmd":["sh"],"Tty":true,"OpenStdin":true,"StdinOnce":true,"User":"1:2","WorkingDir":"/w/../v","Hostname":"h",
		"StopSignal":"SIGINT","StopTimeout":3,"Labels":{"a":"b"},"ExposedPorts":{"90/tcp":{}},
		"HostConfig":{"Privileged":true,"Memory":536870912,"MemorySwap":-1,"NanoCpus":2000000000,"AutoRemove":true,"ConsoleSize":[24,80],"ReadonlyRootfs":true,
			"ShmSize":1048576,"Sysctls":{"net.ipv4.ip_forward":"1"},"GroupAdd":["5"],"PublishAllPorts":true,
			"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}],"53/udp":[{"HostIp":"","HostPort":""}]},
			"Tmpfs":{"/run":"size=1m,exec"},"Mounts":[{"Type":"tmpfs","Target":"/x","ReadOnly":true,"TmpfsOptions":{"SizeBytes":4096,"Mode":448}}],
			"Ulimits":[{"Name":"nofile","Soft":10,"Hard":-1}],"Dns":["1.1.1.1"],"DnsSearch":["s"],"DnsOptions":["ndots:2"],
			"ExtraHosts":["a:1.2.3.4","b:[::1]","gw:host-gateway"]},
		"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":{"IPv4Address":"172.17.0.9"},"MacAddress":"02:42:ac:11:00:99","Aliases":["foo"]}}}
	}`, imageOf("sh"))
	if err != nil {
		t.Fatal(err)
	}
	extra := s.Extra
	s.Extra = nil
	want := `{"name":"","image":"bb","imageID":"","args":["sh"],"dir":"/v","user":"1:2","groups":["5"],"hostname":"h","tty":true,` +
		`"size":{"rows":24,"cols":80},"openStdin":true,"stdinOnce":true,"stopSignal":2,"stopGrace":3000000000,"autoRemove":true,"restart":{"name":"no"},` +
		`"memory":536870912,"cpus":2,"readOnlyRoot":true,"tmpfs":[{"target":"/run","options":["noexec","nosuid","nodev","size=1m","exec"]},` +
		`{"target":"/x","options":["noexec","nosuid","nodev","ro","size=4096","mode=700"]}],"shmSize":1048576,"sysctls":{"net.ipv4.ip_forward":"1"},` +
		`"rlimits":[{"resource":7,"soft":10,"hard":18446744073709551615}],` +
		`"network":{"mode":"bridge","endpoints":[{"network":"bridge","aliases":["foo"],"ip":"172.17.0.9","mac":"02:42:ac:11:00:99"}],"ports":[{"proto":"udp","port":53},{"proto":"tcp","port":80,"hostIP":"127.0.0.1","hostPort":8080},{"proto":"tcp","port":90}],` +
		`"dns":["1.1.1.1"],"dnsSearch":["s"],"dnsOptions":["ndots:2"],` +
		`"hosts":[{"addr":"1.2.3.4","names":["a"]},{"addr":"::1","names":["b"]},{"names":["gw"]}]},"labels":{"a":"b"}}`
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if !sameJSON(t, string(got), want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s.StopSignal != syscall.SIGINT || *s.StopGrace != 3*time.Second {
		t.Errorf("stop: %v, %v", s.StopSignal, *s.StopGrace)
	}
	var c created
	if err := json.Unmarshal(extra, &c); err != nil {
		t.Fatal(err)
	}
	if c.HostConfig.NetworkMode != "bridge" || c.HostConfig.RestartPolicy.Name != "no" || c.Config.Labels["a"] != "b" || c.Config.Image != "bb" {
		t.Errorf("kept for inspect: %s", extra)
	}
	if len(body.ExposedPorts) != 3 {
		t.Errorf("published ports are not exposed: %v", body.ExposedPorts)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var va, vb any
	if err := json.Unmarshal([]byte(a), &va); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(b), &vb); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(va, vb)
}

func TestSpecRefused(t *testing.T) {
	for _, tt := range []struct{ name, body, word string }{
		{"relative workdir", `{"WorkingDir":"rel"}`, "the working directory 'rel' is invalid, it needs to be an absolute path"},
		{"bad signal", `{"StopSignal":"NOPE"}`, "invalid signal: NOPE"},
		{"bad env", `{"Env":["=x"]}`, "invalid environment variable: =x"},
		{"less swap than memory", `{"HostConfig":{"Memory":200000000,"MemorySwap":100000000}}`, "Minimum memoryswap limit"},
		{"port with no network", `{"HostConfig":{"NetworkMode":"none","PortBindings":{"80/tcp":[]}}}`, "conflicting options"},
		{"sctp", `{"HostConfig":{"PortBindings":{"80/sctp":[]}}}`, "SCTP"},
		{"port zero", `{"ExposedPorts":{"0/tcp":{}}}`, "invalid port"},
		{"range", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"90-80"}]}}}`, "range ends before"},
		{"add-host", `{"HostConfig":{"ExtraHosts":["a"]}}`, "bad format for add-host"},
		{"add-host address", `{"HostConfig":{"ExtraHosts":["a:b"]}}`, "invalid IP address in add-host"},
		{"tmpfs path", `{"HostConfig":{"Tmpfs":{"run":""}}}`, "mount path must be absolute"},
		{"tmpfs at the root", `{"HostConfig":{"Tmpfs":{"//":""}}}`, "destination can't be '/'"},
		{"tmpfs source", `{"HostConfig":{"Mounts":[{"Type":"tmpfs","Source":"x","Target":"/x"}]}}`, "Source must not be specified"},
		{"tmpfs options of another type", `{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/x","BindOptions":{}}]}}`, "field BindOptions must not be specified"},
		{"ulimit", `{"HostConfig":{"Ulimits":[{"Name":"nope"}]}}`, "invalid ulimit"},
		{"null ulimit", `{"HostConfig":{"Ulimits":[null]}}`, "null"},
		{"none and others", `{"HostConfig":{"NetworkMode":"none"},"NetworkingConfig":{"EndpointsConfig":{"front":{}}}}`, "(none) mode"},
		{"link-local address", `{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}}}}}`, "--link-local-ip"},
		{"driver option of an endpoint", `{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"a":"b"}}}}}`, "driver-opt"},
		{"link", `{"HostConfig":{"Links":[":a"]}}`, "bad format for links: :a"},
		{"two MAC addresses", `{"MacAddress":"02:42:ac:11:00:99","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:ac:11:00:98"}}}}`, "must match"},
		{"IPC mode", `{"HostConfig":{"IpcMode":"x"}}`, "invalid IPC mode: x"},
		{"PID mode", `{"HostConfig":{"PidMode":"container"}}`, "invalid PID mode: container"},
		{"UTS mode", `{"HostConfig":{"UTSMode":"x"}}`, "invalid UTS mode: x"},
		{"CPU shares", `{"HostConfig":{"CpuShares":-1}}`, "invalid CPU shares (-1): value must be a positive integer"},
		{"mount type", `{"HostConfig":{"Mounts":[{"Type":"x","Target":"/x"}]}}`, `invalid mount config for type "x": mount type unknown`},
		{"annotation", `{"HostConfig":{"Annotations":{"":"a"}}}`, "the empty string is not permitted as an annotation key"},
		{"terminal", `{"HostConfig":{"ConsoleSize":[70000,1]}}`, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := strings.Replace(tt.body, "{", `{"Image":"x",`, 1)
			_, _, err := specFrom(t, body, imageOf("sh"))
			if err == nil || !strings.Contains(err.Error(), tt.word) || statusOf(err) >= 500 && statusOf(err) != 501 {
				t.Errorf("got %v, want %s", err, tt.word)
			}
		})
	}
}

func TestFillIn(t *testing.T) {
	two := `{"NetworkingConfig":{"EndpointsConfig":{"b":{},"a":null}}}`
	for _, tt := range []struct {
		name, body string
		version    version
		ipc        container.IpcMode
		shm        int64
		err        string
	}{
		{"defaults", `{}`, maxVersion, "private", 64 << 20, ""},
		{"older client", `{}`, version{1, 39}, "shareable", 64 << 20, ""},
		{"said", `{"HostConfig":{"IpcMode":"shareable","ShmSize":1}}`, maxVersion, "shareable", 1, ""},
		{"two networks", two, maxVersion, "private", 64 << 20, ""},
		{"two networks, older client", two, version{1, 43}, "", 0, "Container cannot be created with multiple network endpoints: a, b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := createBody{HostConfig: new(hostConfig)}
			if err := decodeJSON(strings.NewReader(tt.body), &body); err != nil {
				t.Fatal(err)
			}
			err := fillIn(&body, tt.version)
			if h := body.HostConfig; h.IpcMode != tt.ipc || h.ShmSize != tt.shm || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("got %q, %d, %v; want %q, %d, %s", h.IpcMode, h.ShmSize, err, tt.ipc, tt.shm, tt.err)
			}
		})
	}
}
