package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/bench/testimage"
)

// TestDocker drives one vic serve with the docker client: first what needs no virtual machine, then
// containers.
func TestDocker(t *testing.T) {
	s := newSuite(t, "--no-templates") // until the subtest "templates"
	for _, tt := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"protocol", testProtocol},
		{"system", testSystem},
		{"images", testImages},
		{"transport", testTransport},
		{"import", testImport},
		{"missing", testMissing},
		{"create", testCreate},
		{"filters", testFilters},
		{"boot", testBoot},
		{"door", testDoor}, // wants what was counted since the server began
		{"templates", testTemplates},
		{"run", testRun},
		{"stdin", testStdin},
		{"build", testBuild},
		{"terminal", testTerminal},
		{"binary", testBinary},
		{"logs", testLogs},
		{"exec", testExec},
		{"lifecycle", testLifecycle},
		{"volumes", testVolumes},
		{"volumes of containers", testContainerVolumes},
		{"binds", testBinds},
		{"events", testEvents},
		{"process options", testProcessOptions},
		{"pause", testPause},
		{"restart policies", testRestartPolicies},
		{"update", testUpdate},
		{"log drivers", testLogDrivers},
		{"health", testHealth},
		{"network", testNetwork},
		{"networks", testNetworks},
		{"leaks", testLeaks},
		{"slow readers", testSlowReaders},
		{"inside", testInside},
		{"restart of the server", testServerRestart},
		{"limits", testLimits},
		{"remove images", testRemoveImages},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, s) })
	}
}

// request sends a request of its own to the host.
func (s *suite) request(t *testing.T, method, path, contentType, body string, header ...string) (*http.Response, map[string]any) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://vic"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v map[string]any
	json.NewDecoder(resp.Body).Decode(&v) // not every reply is an object
	return resp, v
}

func testProtocol(t *testing.T, s *suite) {
	const js = "application/json"
	for _, tt := range []struct {
		method, path, contentType, body string
		status                          int
		message                         string
	}{
		{"GET", "/v1.99/info", "", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"},
		{"GET", "/v1.1/info", "", "", 400, "client version 1.1 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/nope", "", "", 404, "page not found"},
		{"GET", "/v1.50/nope", "", "", 404, "page not found"},
		{"PUT", "/info", "", "", 404, "page not found"},
		{"POST", "/containers/create", js, "{}", 400, "config cannot be empty in order to create a container"},
		{"POST", "/containers/create", "text/plain", "{}", 400, "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"POST", "/containers/create", js, "{invalid", 400, "invalid JSON: invalid character 'i' looking for beginning of object key string"},
		{"POST", "/containers/create", js, "{}{}", 400, "unexpected content after JSON"},
		{"POST", "/containers/create", js, `{"Image":"nope"}`, 404, "No such image: nope:latest"},
		{"GET", "/containers/nope/json", "", "", 404, "No such container: nope"},
		{"GET", "/containers//nope/json", "", "", 404, "No such container: nope"},
		{"POST", "/containers/nope/wait?condition=x", "", "", 400, `invalid condition: "x"`},
		{"GET", "/containers/nope/logs", "", "", 400, "Bad parameters: you must choose at least one stream"},
		{"GET", "/images/a%2Fb/json", "", "", 404, "No such image: a/b:latest"},
		{"GET", "/images/127.0.0.1:5000/a/b/json", "", "", 404, "No such image: 127.0.0.1:5000/a/b:latest"},
		{"GET", "/networks/nope", "", "", 404, "network nope not found"},
		{"GET", "/volumes/nope", "", "", 404, "get nope: no such volume"},
		{"GET", "/plugins/nope/json", "", "", 404, `plugin "nope" not found`},
		{"GET", "/exec/nope/json", "", "", 404, "No such exec instance: nope"},
		{"GET", "/nodes", "", "", 503, "This node is not a swarm manager."},
		{"POST", "/images/create?fromImage=busybox", "", "", 501, "pulling all tags of busybox"},
		{"POST", "/images/create?fromImage=A", "", "", 400, "invalid reference format"},
		{"GET", "/containers/json?filters={", "", "", 400, "invalid filters"},
		{"GET", "/containers/json?limit=x", "", "", 400, "limit"},
	} {
		resp, v := s.request(t, tt.method, tt.path, tt.contentType, tt.body)
		msg, _ := v["message"].(string)
		if resp.StatusCode != tt.status || !strings.Contains(msg, tt.message) || resp.Header.Get("Content-Type") != js {
			t.Errorf("%s %s: got %d %q, want %d %q", tt.method, tt.path, resp.StatusCode, msg, tt.status, tt.message)
		}
	}
	resp, _ := s.request(t, "HEAD", "/_ping", "", "")
	for key, want := range map[string]string{"Api-Version": "1.51", "Ostype": "linux", "Docker-Experimental": "false", "Builder-Version": "1", "Swarm": "inactive"} {
		if got := resp.Header.Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if resp, v := s.request(t, "POST", "/images/prune", "", "", "Origin", "http://example.org"); resp.StatusCode != 403 {
		t.Errorf("a web page was answered: %d %v", resp.StatusCode, v)
	}
}

func testSystem(t *testing.T, s *suite) {
	s.docker(t, "", "version", "--format", "{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Client.APIVersion}}").want(0, "1.51 1.24 1.50\n")
	s.docker(t, "", "info", "--format", "{{.Driver}} {{.OSType}} {{.Architecture}} {{.Swarm.LocalNodeState}}").want(0, "vmdk linux x86_64 inactive\n")
	s.docker(t, "", "network", "ls", "--format", "{{.Name}} {{.Driver}}").want(0, "bridge bridge\nnone null\n")
	s.docker(t, "", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").has(".")
	s.docker(t, "", "network", "rm", "bridge").wantError(1, "bridge is a pre-defined network and cannot be removed")
	s.docker(t, "", "volume", "ls", "-q").want(0, "")
	s.docker(t, "", "system", "df").has("Images")
	s.docker(t, "", "system", "prune", "-f").has("Total reclaimed space: 0B")
	s.docker(t, "", "inspect", "nope").wantError(1, "No such object: nope")
}

func testImages(t *testing.T, s *suite) {
	s.docker(t, "", "pull", s.registry.Addr+"/lib/bb:nope").wantError(1, "manifest for "+s.registry.Addr+"/lib/bb:nope not found")
	s.docker(t, "", "pull", s.image).has("1: Pulling from lib/bb", ": Pull complete", "Status: Downloaded newer image for "+s.image)
	s.docker(t, "", "pull", s.image).has("Status: Image is up to date for "+s.image, ": Already exists")
	s.docker(t, "", "pull", "-q", s.image).want(0, s.image+"\n")
	digest := strings.TrimPrefix(s.docker(t, "", "image", "inspect", s.image, "--format", "{{index .RepoDigests 0}}").ok(), s.registry.Addr+"/lib/bb@")
	s.docker(t, "", "pull", s.registry.Addr+"/lib/bb@"+digest).has("Image is up to date")
	s.docker(t, "", "images", "--format", "{{.Repository}}:{{.Tag}}").want(0, s.image+"\n")
	s.docker(t, "", "tag", s.image, "bb").want(0, "")
	s.docker(t, "", "tag", "nope", "x").wantError(1, "No such image: nope:latest")
	s.docker(t, "", "images", "bb", "--format", "{{.Repository}}:{{.Tag}}").want(0, "bb:latest\n")
	s.docker(t, "", "images", "-q", "--filter", "dangling=true").want(0, "")
	s.docker(t, "", "images", "-q", "--filter", "label=kind=test").has("")
	s.docker(t, "", "images", "-q", "--filter", "label=kind=other").want(0, "")
	s.docker(t, "", "image", "inspect", "bb", "--format", "{{.Architecture}} {{.Os}} {{.Config.Cmd}} {{len .RootFS.Layers}}").want(0, "amd64 linux [sh] 1\n")
	s.docker(t, "", "history", "--format", "{{.CreatedBy}}", "bb").has("busybox --install /bin")
	disk := s.docker(t, "", "image", "inspect", "bb", "--format", "{{.GraphDriver.Data.Disk}}").ok()
	oracle.Need(t, "qemu-img")
	if out, err := exec.Command("qemu-img", "info", disk).CombinedOutput(); err != nil || !strings.Contains(string(out), "64 GiB") {
		t.Errorf("qemu-img info %s: %v\n%s", disk, err, out)
	}
}

// What this host does not have is refused with a sentence.
func testMissing(t *testing.T, s *suite) {
	s.docker(t, "", "search", "bb").wantError(1, "this host cannot do that yet")
	s.docker(t, "", "run", "--restart", "always", "--rm", "bb").wantError(125, "cannot specify both --restart and --rm")
	s.docker(t, "", "run", "--network", "host", "bb").wantError(125, "--network is not supported")
	s.docker(t, "", "run", "--cpu-shares", "5", "bb").wantError(125, "--cpu-shares is not supported")
	s.docker(t, "", "run", "--pid", "host", "bb").wantError(125, "--pid is not supported")
	s.docker(t, "", "run", "--cpus", "99", "bb").wantError(125, "range of CPUs is from 0.01 to ")
	s.docker(t, "", "run", "--cap-add", "FLY", "bb").wantError(125, `invalid CapAdd: unknown capability: "CAP_FLY"`)
	s.docker(t, "", "run", "--gpus", "all", "bb").wantError(125, "--gpus is not supported")
	s.docker(t, "", "swarm", "init").wantError(1, "not a swarm manager")
}

// Containers that are made and not started need no virtual machine.
func testCreate(t *testing.T, s *suite) {
	id := s.docker(t, "", "create", "--name", "c1", "-e", "A=1", "-e", "FROM", "-l", "x=y", "-p", "18080:80", "--expose", "90", "-h", "host1", "bb", "echo", "hi there").ok()
	if len(id) != 64 {
		t.Errorf("ID %q", id)
	}
	s.docker(t, "", "create", "--name", "c1", "bb").wantError(1, `Conflict. The container name "/c1" is already in use by container "`+id+`". You have to remove (or rename) that container to be able to reuse that name.`)
	s.docker(t, "", "create", "--name", "bad name!", "bb").wantError(1, "Invalid container name (bad name!), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
	s.docker(t, "", "create", "-w", "rel", "bb").wantError(1, "the working directory 'rel' is invalid, it needs to be an absolute path")
	s.docker(t, "", "create", "-m", "1m", "bb").wantError(1, "memory")
	s.docker(t, "", "inspect", "c1", "--format",
		"{{.Name}} {{.State.Status}} {{.Path}} {{.Args}} {{.Config.Labels}} {{.Config.Hostname}} {{.HostConfig.NetworkMode}} {{.Config.Image}}").
		want(0, "/c1 created echo [hi there] map[kind:test x:y] host1 bridge bb\n")
	env := strings.Fields(s.docker(t, "", "inspect", "c1", "--format", "{{range .Config.Env}}{{.}} {{end}}").ok())
	if slices.Sort(env); !slices.Equal(env, []string{"A=1", "FROM", "PATH=/bin"}) { // the client sends them in any order
		t.Errorf("environment %q", env)
	}
	s.docker(t, "", "inspect", id[:6], "--format", "{{.Id}}").want(0, id+"\n")
	s.docker(t, "", "ps", "-q").want(0, "")
	s.docker(t, "", "ps", "-a", "--no-trunc", "--format", "{{.Names}}|{{.Image}}|{{.Command}}|{{.Status}}|{{.State}}").want(0, `c1|bb|"echo 'hi there'"|Created|created`+"\n")
	s.docker(t, "", "logs", "c1").want(0, "")
	s.docker(t, "", "port", "c1").want(0, "")
	s.docker(t, "", "kill", "c1").wantError(1, "is not running")
	s.docker(t, "", "kill", "-s", "NOPE", "c1").wantError(1, "invalid signal: NOPE")
	s.docker(t, "", "exec", "c1", "true").wantError(1, "is not running")
	s.docker(t, "", "stop", "c1").want(0, "c1\n") // 304 is a success
	s.docker(t, "", "rename", "c1", "c2").want(0, "")
	s.docker(t, "", "rename", "c2", "c2").wantError(1, "Renaming a container with the same name as its current name")
	s.docker(t, "", "rename", "nope", "x").wantError(1, "No such container: nope")
	s.docker(t, "", "rm", "c2").want(0, "c2\n")
	s.docker(t, "", "rm", "c2").wantError(1, "No such container: c2")
	s.docker(t, "", "inspect", "c2").wantError(1, "No such object: c2")
	s.docker(t, "", "create", "--name", "c3", "bb").ok()
	s.docker(t, "", "container", "prune", "-f").has("Deleted Containers:")
	s.docker(t, "", "ps", "-aq").want(0, "")
}

func testFilters(t *testing.T, s *suite) {
	for _, name := range []string{"f1", "f2", "f3"} {
		s.docker(t, "", "create", "--name", name, "-l", "n="+name, "bb").ok()
	}
	defer s.docker(t, "", "rm", "f1", "f2", "f3")
	const names = "{{.Names}}"
	for _, tt := range []struct{ filter, want string }{
		{"name=f[12]", "f2\nf1\n"},
		{"label=n=f2", "f2\n"},
		{"label=n", "f3\nf2\nf1\n"},
		{"status=created", "f3\nf2\nf1\n"},
		{"status=exited", ""},
		{"before=f2", "f1\n"},
		{"since=f2", "f3\n"},
		{"ancestor=bb", "f3\nf2\nf1\n"},
		{"ancestor=other", ""},
		{"network=bridge", "f3\nf2\nf1\n"},
		{"network=none", ""},
		{"volume=v", ""},
		{"health=none", "f3\nf2\nf1\n"},
	} {
		s.docker(t, "", "ps", "-a", "--filter", tt.filter, "--format", names).want(0, tt.want)
	}
	s.docker(t, "", "ps", "-n", "2", "--format", names).want(0, "f3\nf2\n")
	s.docker(t, "", "ps", "-l", "--format", names).want(0, "f3\n")
	s.docker(t, "", "ps", "--filter", "nope=1").wantError(1, "invalid filter 'nope'")
	s.docker(t, "", "ps", "--filter", "status=nope").wantError(1, "invalid filter 'status=nope'")
}

func testRemoveImages(t *testing.T, s *suite) {
	s.docker(t, "", "create", "--name", "user", "bb").ok()
	s.docker(t, "", "rmi", "bb").has("Untagged: bb:latest") // it has another name
	s.docker(t, "", "rmi", s.image).wantError(1, "conflict: unable to remove repository reference")
	s.docker(t, "", "rm", "user").ok()
	s.docker(t, "", "rmi", s.image).has("Untagged: "+s.image, "Deleted: sha256:")
	s.docker(t, "", "rmi", s.image).wantError(1, "No such image: "+s.image)
	s.docker(t, "", "images", "-q").want(0, "")
	s.docker(t, "", "run", "--pull", "never", s.image).wantError(125, "No such image: "+s.image)
}

// Images go out and come back, by docker's client and by skopeo as one.
func testTransport(t *testing.T, s *suite) {
	oracle.Need(t, "skopeo")
	id := s.docker(t, "", "images", "-q", "--no-trunc", s.image).ok()
	saved := filepath.Join(s.dir, "saved.tar")
	s.docker(t, "", "save", "-o", saved, s.image).ok()
	s.docker(t, "", "load", "-i", saved).has("Loaded image: " + s.image)
	s.docker(t, "", "rmi", "-f", id).ok()
	archive, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	s.docker(t, string(archive), "load", "-q").want(0, "Loaded image: "+s.image+"\n")
	if got := s.docker(t, "", "images", "-q", "--no-trunc").ok(); got != id {
		t.Errorf("saved, removed and loaded: %s, want %s", got, id)
	}
	s.docker(t, string(archive[:len(archive)/2]), "load").wantError(1, "unexpected EOF")
	s.docker(t, "no tar", "load").wantError(1, "image archive: ")
	resp := s.fetch(t, http.MethodPost, "/images/load", strings.NewReader("no tar"))
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK { // clients look for the error in the stream
		t.Errorf("what cannot be loaded: status %d", resp.StatusCode)
	}
	s.docker(t, string(archive), "load", "--platform", "linux/s390x").wantError(1, "not linux/s390x")

	// What is brought beside the daemon is there at once.
	var out bytes.Buffer
	if err := run(t.Context(), []string{"seed", "--store", filepath.Join(s.dir, "store"), "docker-archive:" + saved, "--name", "beside:1"}, strings.NewReader(""), &out, io.Discard); err != nil {
		t.Errorf("seed beside vic serve: %v", err)
	}
	s.docker(t, "", "images", "-q", "--no-trunc", "beside:1").want(0, id+"\n")
	s.docker(t, "", "rmi", "beside:1").ok()

	// A repository without latest stands for its tags.
	repo := strings.TrimSuffix(s.image, ":1")
	s.docker(t, "", "save", "-o", saved, "--platform", "linux/amd64", repo).ok()
	s.docker(t, "", "save", "-o", saved, "--platform", "linux/s390x", repo).wantError(1, "does not match the specified platform")
	s.docker(t, "", "save", "-o", saved, repo, "nope").wantError(1, "reference does not exist: nope:latest")

	pushed := s.registry.Addr + "/pushed"
	s.docker(t, "", "push", pushed).wantError(1, "An image does not exist locally with the tag: "+pushed)
	s.docker(t, "", "tag", s.image, pushed+":2").ok()
	s.docker(t, "", "push", pushed).wantError(1, "tag does not exist: "+pushed+":latest")
	s.docker(t, "", "push", pushed+":2").has("The push refers to repository ["+pushed+"]", "2: digest: sha256:")
	s.docker(t, "", "push", "-a", pushed).has(": Layer already exists", "2: digest: sha256:")
	s.docker(t, "", "push", "127.0.0.1:1/none:1").wantError(1, "An image does not exist locally")
	s.docker(t, "", "tag", s.image, "127.0.0.1:1/none:1").ok()
	s.docker(t, "", "push", "127.0.0.1:1/none:1").wantError(1, "connection refused")
	s.docker(t, "", "rmi", "127.0.0.1:1/none:1").ok()
	s.docker(t, "", "image", "inspect", pushed+":2", "--format", "{{.RepoDigests}}").has(pushed + "@sha256:")
	config, err := exec.Command("skopeo", "inspect", "--tls-verify=false", "--raw", "--config", "docker://"+pushed+":2").Output()
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(config)); err != nil || got != id {
		t.Errorf("skopeo finds image %s, want %s (%v)", got, id, err)
	}
	s.docker(t, "", "rmi", "-f", id).ok()
	s.docker(t, "", "pull", "-q", s.image).ok()
	if got := s.docker(t, "", "images", "-q", "--no-trunc").ok(); got != id {
		t.Errorf("pulled again: %s, want %s", got, id)
	}
	s.docker(t, "", "tag", s.image, "bb").ok()
}

// A tar becomes an image, which leaves as one.
func testImport(t *testing.T, s *suite) {
	oracle.Need(t, "skopeo")
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	if err := errors.Join(testimage.Add(w, tar.Header{Name: "hello"}, "hello\n"), w.Close()); err != nil {
		t.Fatal(err)
	}
	id := s.docker(t, root.String(), "import", "-c", `CMD ["/hello", "you"]`, "-c", "ENV A=1", "-m", "by hand", "-", "imported:1").ok()
	s.docker(t, "", "image", "inspect", "imported:1", "--format", "{{.Id}} {{.Config.Cmd}} {{.Config.Env}} {{.Comment}} {{.Architecture}}").
		want(0, id+" [/hello you] [A=1] by hand "+runtime.GOARCH+"\n")
	saved := filepath.Join(s.dir, "imported.tar")
	s.docker(t, "", "save", "-o", saved, "imported:1").ok()
	raw, err := exec.Command("skopeo", "inspect", "--raw", "--config", "docker-archive:"+saved).Output()
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(raw)); err != nil || got != id {
		t.Errorf("skopeo finds image %s, want %s (%v)", got, id, err)
	}
	// A name goes to what was loaded last.
	other := s.docker(t, root.String(), "import", "-", "imported:1").ok()
	s.docker(t, "", "load", "-i", saved).has("The image imported:1 already exists, renaming the old one with ID "+other+" to empty string", "Loaded image: imported:1")
	s.docker(t, "", "rmi", other).ok()
	s.docker(t, root.String()[:515], "import", "-").wantError(1, "unexpected EOF")
	s.docker(t, root.String(), "import", "-c", "RUN x", "-").wantError(1, "RUN is not a valid change command")
	s.docker(t, "", "import", "http://127.0.0.1:1/x").wantError(1, "importing from a URL")
	s.docker(t, "", "rmi", "imported:1").ok()
}
