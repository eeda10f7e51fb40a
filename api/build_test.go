package api

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every parameter that Docker's description of its API has for a build has a line, once.
func TestBuildOptions(t *testing.T) {
	var got []string
	for _, o := range buildOptions {
		if slices.Contains(got, o.key) {
			t.Errorf("%s has two lines", o.key)
		}
		got = append(got, o.key)
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "docs/v1.51.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n  /build:\n")
	if part, _, _ = strings.Cut(part, "\n  /"); !found {
		t.Fatal("no /build in the description")
	}
	params := regexp.MustCompile(`- name: "?(\w+)"?\n\s+in: "?query`).FindAllStringSubmatch(part, -1)
	if len(params) < 20 {
		t.Fatalf("%d parameters were found", len(params))
	}
	for _, p := range params {
		if !slices.Contains(got, p[1]) {
			t.Errorf("%s has no line", p[1])
		}
	}
}

func TestBuildRequest(t *testing.T) {
	b, err := buildRequestOf(url.Values{
		"dockerfile": {"D"}, "t": {"a", "b:2", "docker.io/library/a:latest", ""}, "q": {"1"}, "nocache": {"True"}, "rm": {"0"}, "forcerm": {"1"}, "pull": {"1"},
		"cachefrom": {`["x"]`}, "memory": {"100000000"}, "memswap": {"-1"}, "cpusetcpus": {"0"}, "cpuperiod": {"100000"}, "cpuquota": {"50000"}, "cpushares": {"0"},
		"buildargs": {`{"A":"1","B":null}`}, "labels": {`{"l":"m"}`}, "shmsize": {"67108864"}, "ulimits": {`[{"Name":"nofile","Soft":10,"Hard":20}]`},
		"networkmode": {"none"}, "extrahosts": {"h:10.0.0.1", "i:10.0.0.2"}, "platform": {"linux/amd64"}, "target": {"x"}, "version": {"1"}, "squash": {"0"}, "outputs": {"[]"},
		"isolation": {"default"}, "securityopt": {""}, "session": {""}, "buildid": {"id"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if o := b.build; o.File != "D" || !o.NoCache || o.Remove || !o.ForceRemove || !slices.Equal(o.CacheFrom, []string{"x"}) || *o.Args["A"] != "1" || len(o.Args) != 2 || o.Args["B"] != nil ||
		o.Labels["l"] != "m" || o.Platform.Architecture != "amd64" || o.Target != "x" || !b.quiet || !b.pull || b.id != "id" || len(b.names) != 2 {
		t.Errorf("%+v", b)
	}
	if h := b.host; h.Memory != 100000000 || h.MemorySwap != -1 || h.CpusetCpus != "0" || h.CPUPeriod != 100000 || h.CPUQuota != 50000 || h.ShmSize != 67108864 ||
		h.Ulimits[0].Hard != 20 || h.NetworkMode != "none" || len(h.ExtraHosts) != 2 || h.LogConfig.Type != "none" {
		t.Errorf("%+v", h)
	}
	if b, err := buildRequestOf(url.Values{}); err != nil || !b.build.Remove || b.build.ForceRemove {
		t.Errorf("nothing asked for: %+v, %v", b, err)
	}
	for _, tt := range []struct {
		key, value string
		status     int
		message    string
	}{
		{"t", "Bad", 400, "invalid reference format"},
		{"t", "x@sha256:" + strings.Repeat("a", 64), 400, "build tag cannot contain a digest"},
		{"squash", "1", 400, "squash is only supported with experimental mode"},
		{"version", "2", 501, "set DOCKER_BUILDKIT=0"},
		{"version", "3", 400, "invalid version 3"},
		{"session", "x", 501, "set DOCKER_BUILDKIT=0"},
		{"outputs", `[{"Type":"local"}]`, 400, "--output needs BuildKit"},
		{"securityopt", "x", 400, "does not support setting security options on build"},
		{"isolation", "hyperv", 400, "--isolation is not supported"},
		{"cpushares", "5", 400, "--cpu-shares is not supported"},
		{"cpusetmems", "0", 400, "--cpuset-mems is not supported"},
		{"cgroupparent", "x", 400, "--cgroup-parent is not supported"},
		{"networkmode", "host", 400, "--network is not supported"},
		{"memory", "x", 400, `invalid value "x"`},
		{"buildargs", "{", 400, "error reading build args"},
		{"labels", "[]", 400, "error reading labels"},
		{"ulimits", "{}", 400, "error reading ulimit settings"},
		{"platform", "a/b/c/d", 400, "a/b/c/d"},
	} {
		_, err := buildRequestOf(url.Values{tt.key: {tt.value}})
		if err == nil || statusOf(err) != tt.status || !strings.Contains(err.Error(), tt.message) {
			t.Errorf("%s=%s: got %v, want %d %q", tt.key, tt.value, err, tt.status, tt.message)
		}
	}
}

func TestRegistryConfig(t *testing.T) {
	for header, want := range map[string]string{
		"":     "",
		"e30=": "",
		"eyJleGFtcGxlLm9yZyI6eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifX0=": "u", // {"example.org":{"username":"u","password":"p"}}
		"!": "error",
	} {
		r := &http.Request{Header: http.Header{"X-Registry-Config": {header}}}
		c, err := registryConfig(r)
		if want == "error" {
			if statusOf(err) != http.StatusBadRequest {
				t.Errorf("%s: %v", header, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if creds, err := c.Credentials(t.Context(), "example.org"); err != nil || creds.Username != want {
			t.Errorf("%s: %+v, %v", header, creds, err)
		}
	}
	for remote, want := range map[string]bool{
		"git://x/y": true, "git@h:x": true, "github.com/x/y": true, "https://h/x.git#main:dir": true, "https://h/x.tar.gz": false, "http://h/Dockerfile": false,
	} {
		if isGit(remote) != want {
			t.Errorf("%s: %v", remote, !want)
		}
	}
}

// Images that builds hold are kept as often as they are held, and a build ends by its ID.
func TestBuilds(t *testing.T) {
	var b builds
	one, two := b.hold("x"), b.hold("x")
	one()
	if !b.holds("x") || b.holds("y") {
		t.Error("an image that is held is not")
	}
	if two(); b.holds("x") {
		t.Error("an image is held for nobody")
	}
	ctx, done, err := b.begin(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.begin(t.Context(), "id"); statusOf(err) != http.StatusConflict {
		t.Errorf("an ID twice: %v", err)
	}
	b.stop("other")
	if ctx.Err() != nil {
		t.Error("another build was ended")
	}
	if b.stop("id"); ctx.Err() == nil {
		t.Error("the build goes on")
	}
	done()
	if _, done, err = b.begin(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
	done()
}
