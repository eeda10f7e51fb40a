package main

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/types/container"
)

// insideTree makes what moby's TestCopyFromContainer copies from, and users to own it.
const insideTree = `mkdir -p /bar/quux /tmp /etc; printf hello >/foo; printf world >/bar/quux/baz
ln -s notexist /bar/notarget; ln -s quux/baz /bar/filesymlink; ln -s quux /bar/dirsymlink; ln -s / /bar/root
echo 'root:x:0:0::/:' >/etc/passwd; echo 'app:x:2375:2376::/:' >>/etc/passwd; `

// testInside looks into a container that runs, and into the same one when it has ended.
func testInside(t *testing.T, s *suite) {
	id := s.docker(t, "", "run", "-d", "--name", "inside", "-u", "2375:2376", s.image, "sleep", "100000").ok()
	s.docker(t, "", "exec", "-u", "0", "inside", "sh", "-ec", insideTree).want(0, "")
	t.Run("attach by WebSocket", func(t *testing.T) { testWebSocket(t, s) })
	t.Run("top", func(t *testing.T) { testTop(t, s) })
	t.Run("stats", func(t *testing.T) { testStats(t, s) })
	t.Run("copy from", func(t *testing.T) { testCopyFrom(t, s, id) })
	t.Run("copy to", func(t *testing.T) { testCopyTo(t, s, id) })
	t.Run("copies side by side", func(t *testing.T) { testManyCopies(t, s) })
	t.Run("copy before the start", func(t *testing.T) { testCopyBefore(t, s) })
	s.docker(t, "", "exec", "-u", "0", "inside", "sh", "-ec", insideChanges).want(0, "")
	running := t.TempDir()
	t.Run("changes", func(t *testing.T) { testChanges(t, s, running) })

	// The power goes: what the guest had written out is in the disk's journal. What follows is read from
	// there.
	pid, err := strconv.Atoi(s.docker(t, "", "inspect", "-f", "{{.State.Pid}}", "inside").ok())
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.docker(t, "", "wait", "inside").want(0, "137\n")
	t.Run("copy from stopped", func(t *testing.T) { testCopyFrom(t, s, id) })
	t.Run("changes of stopped", func(t *testing.T) { testChanges(t, s, running) })
	if status, text := s.put(t, id, "path=/new/link", tar.Header{Name: "more"}); status != http.StatusOK {
		t.Errorf("copy to stopped: status %d, %s", status, text)
	}
	s.docker(t, "", "diff", "inside").has("A /new/deep/more\n")
	s.fsck(t, "inside")
	s.docker(t, "", "top", "inside").wantError(1, "is not running")
	s.docker(t, "", "stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "inside").want(0, "0 0B / 0B\n")
	s.docker(t, "", "events", "--since", "1h", "--until", strconv.FormatInt(time.Now().Unix()+1, 10), "--filter", "container=inside", "--format", "{{.Action}}").
		has("top\n", "archive-path\n", "extract-to-dir\n", "export\n", "pause\n", "unpause\n", "commit\n")
	s.docker(t, "", "rm", "-f", "inside").ok()
}

// insideChanges are changes of every kind, on the disk when it returns.
const insideChanges = `rm -rf /tmp /bar/through /bar/quux/file; echo file >/tmp; rm /bin/yes; mkdir -p /new/deep; echo data >/new/deep/file; ln /new/deep/file /new/hard; ln -s deep /new/link
mknod /new/null c 1 3; mkfifo /new/fifo; chmod 4711 /bin/busybox; dd if=/dev/zero of=/new/sparse bs=1 count=1 seek=1000000 2>/dev/null; sync`

// wantedChanges is what docker diff tells of insideTree and insideChanges.
const wantedChanges = "A /bar\nA /bar/dirsymlink\nA /bar/filesymlink\nA /bar/notarget\nA /bar/quux\nA /bar/quux/baz\nA /bar/root\nC /bin\nC /bin/busybox\nD /bin/yes\nC /etc\nC /etc/passwd\nA /foo\n" +
	"A /new\nA /new/deep\nA /new/deep/file\nA /new/fifo\nA /new/hard\nA /new/link\nA /new/null\nA /new/sparse\nC /tmp\n"

// list makes a list of a folder's files, with what a layer keeps of them but the times.
const listFiles = `cd "$1"; list() { find . ! -name . ! -path './dev/*' ! -path './proc/*' ! -path './sys/*' ! -path './etc/h*' ! -path './etc/resolv.conf' ! -path ./etc/mtab ! -path ./dev ! -path ./proc ! -path ./sys "$@" | sort -z; }
	list -print0 | xargs -0 stat -c '%n %F %a %u:%g %t:%T'; list -type l -printf '%p %l\0' | tr '\0' '\n'; list -type f -print0 | xargs -0 stat -c '%n %h %s'; list -type f -print0 | xargs -0 md5sum`

// testChanges is docker diff, export and commit. What is exported first is in dir, for later ones.
func testChanges(t *testing.T, s *suite, dir string) {
	oracle.Need(t, "umoci", "skopeo", "tar", "bash")
	s.docker(t, "", "diff", "inside").want(0, wantedChanges)
	tree := filepath.Join(t.TempDir(), "export")
	shell(t, `mkdir -p "$1"; tar -xpf - -C "$1"`, s.docker(t, "", "export", "inside").out, tree)
	exported := shell(t, listFiles, "", tree)
	first := filepath.Join(dir, "list")
	if want, err := os.ReadFile(first); err == nil && string(want) != exported {
		t.Errorf("exported:\n%s\nbefore:\n%s", exported, want)
	} else if err != nil {
		if err := os.WriteFile(first, []byte(exported), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	s.docker(t, "", "commit", "-a", "me", "-m", "a comment", "-c", `CMD ["cat", "/new/deep/file"]`, "-c", "ENV NEW=1", "-c", "ONBUILD RUN x", "inside", "made:1").ok()
	s.docker(t, "", "run", "--rm", "--network", "none", "made:1").want(0, "data\n")
	s.docker(t, "", "inspect", "-f", "{{.Author}} {{.Comment}} {{.Config.Env}} {{.Config.OnBuild}} {{.Config.User}} {{.Config.Labels}}", "made:1").
		want(0, "me a comment [PATH=/bin FROM=image NEW=1] [RUN x] 2375:2376 map[kind:test]\n")
	s.docker(t, "", "history", "--format", "{{.CreatedBy}}|{{.Comment}}", "made:1").has("sleep 100000|a comment")
	tmp := t.TempDir()
	s.docker(t, "", "save", "-o", filepath.Join(tmp, "saved.tar"), "made:1").ok()
	shell(t, `cd "$1"; skopeo copy -q docker-archive:saved.tar oci:oci:made; umoci unpack --image oci:made bundle`, "", tmp)
	if got := shell(t, listFiles, "", filepath.Join(tmp, "bundle/rootfs")); got != exported {
		t.Errorf("umoci unpacks\n%s\nof what docker export has as\n%s", got, exported)
	}
	s.docker(t, "", "rmi", "made:1").ok()
	s.docker(t, "", "commit", "-c", "RUN x", "inside").wantError(1, "RUN is not a valid change command")
	s.docker(t, "", "commit", "nope").wantError(1, "No such container: nope")
}

// shell runs a script and returns its output.
func shell(t *testing.T, script, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", script, "sh"}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, errOut.String())
	}
	return string(out)
}

// testWebSocket attaches before the start, as docker run does.
func testWebSocket(t *testing.T, s *suite) {
	s.docker(t, "", "create", "-i", "--name", "socket", "--network", "none", s.image, "sh", "-c", "read line; echo got $line; echo bad >&2").ok()
	dial := func(header http.Header) (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(t.Context(), "ws://127.0.0.1/containers/socket/attach/ws?stream=1&stdin=1&stdout=1&stderr=1", &websocket.DialOptions{HTTPHeader: header,
			HTTPClient: &http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}})
	}
	if _, resp, err := dial(http.Header{"Origin": {"http://example.org"}}); err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page's: %v", err)
	}
	conn, _, err := dial(http.Header{"Origin": {"http://127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	s.docker(t, "", "start", "socket").ok()
	for _, part := range []string{"a li", "ne\n"} {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	for {
		kind, data, err := conn.Read(t.Context())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			break
		}
		if err != nil || kind != websocket.MessageBinary {
			t.Fatalf("%v, %v", kind, err)
		}
		got += string(data)
	}
	if got != "got a line\nbad\n" && got != "bad\ngot a line\n" {
		t.Errorf("output %q", got)
	}
	s.docker(t, "", "rm", "socket").ok()
}

func testTop(t *testing.T, s *suite) {
	s.docker(t, "", "top", "inside").has("UID ", "PID ", "PPID ", "STIME ", "CMD", "app ", "sleep 100000")
	s.docker(t, "", "top", "inside", "aux").has("USER ", "%CPU ", "RSS ", "COMMAND", "Ss ")
	// The container's processes alone: neither PID 1 nor the kernel's threads.
	if got := strings.Fields(s.docker(t, "", "top", "inside", "-o", "pid,user=WHO").ok()); len(got) != 4 || got[1] != "WHO" || got[2] == "1" || got[3] != "app" {
		t.Errorf("top -o pid,user=WHO: %q", got)
	}
	s.docker(t, "", "top", "inside", "-p", "1").wantError(1, `"-p" of ps is not supported`)
	s.docker(t, "", "top", "inside", "-o", "comm").wantError(1, "Couldn't find PID field in ps output")
	s.docker(t, "", "top", "nope").wantError(1, "No such container: nope")
}

// testStats compares what stats tells with the guest's own /proc.
func testStats(t *testing.T, s *suite) {
	s.docker(t, "", "exec", "-d", "inside", "dd", "if=/dev/zero", "of=/dev/null").ok()
	stats := func() (st container.StatsResponse) {
		t.Helper()
		resp := s.fetch(t, http.MethodGet, "/containers/inside/stats?stream=0&one-shot=1", nil)
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	guest := func() (busy, mem float64) {
		t.Helper()
		out := s.docker(t, "", "exec", "inside", "sh", "-c", "head -1 /proc/stat; cat /proc/meminfo").ok()
		var user, nice, system, idle, iowait, irq, soft float64
		fmt.Sscanf(out, "cpu %g %g %g %g %g %g %g", &user, &nice, &system, &idle, &iowait, &irq, &soft)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); f[0] == "MemTotal:" || f[0] == "MemFree:" {
				n, _ := strconv.ParseFloat(f[1], 64)
				mem += map[string]float64{"MemTotal:": n, "MemFree:": -n}[f[0]] * 1024
			}
		}
		return (user + nice + system + irq + soft) * 1e7, mem
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if d := got - want; d > 0.1*want || d < -0.1*want {
			t.Errorf("%s: %g, the guest says %g", what, got, want)
		}
	}
	busy, mem := guest()
	st := stats()
	near("CPU time", float64(st.CPUStats.CPUUsage.TotalUsage), busy)
	near("memory", float64(st.MemoryStats.Usage), mem)
	if st.MemoryStats.Limit != 256<<20 || st.PidsStats.Current < 2 || st.Networks["eth0"].TxBytes == 0 || len(st.BlkioStats.IoServiceBytesRecursive) != 2 || !st.PreRead.IsZero() {
		t.Errorf("one shot: %+v", st)
	}
	resp := s.fetch(t, http.MethodGet, "/containers/inside/stats", nil)
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	var last container.StatsResponse
	if err := dec.Decode(&last); err != nil {
		t.Fatal(err)
	}
	if !last.PreRead.IsZero() {
		t.Errorf("the first of the stream: %+v", last)
	}
	for grown := false; !grown; { // not in each: a guest may have had no turn meanwhile
		var next container.StatsResponse
		if err := dec.Decode(&next); err != nil {
			t.Fatal(err)
		}
		if next.PreRead != last.Read || next.PreCPUStats.CPUUsage.TotalUsage != last.CPUStats.CPUUsage.TotalUsage ||
			next.CPUStats.CPUUsage.TotalUsage < last.CPUStats.CPUUsage.TotalUsage || next.CPUStats.SystemUsage < last.CPUStats.SystemUsage {
			t.Fatalf("stream: %+v, then %+v", last, next)
		}
		grown = next.CPUStats.CPUUsage.TotalUsage > last.CPUStats.CPUUsage.TotalUsage && next.CPUStats.SystemUsage > last.CPUStats.SystemUsage
		last = next
	}
	s.docker(t, "", "exec", "-u", "0", "inside", "sh", "-c", "kill $(pidof dd)").ok()
	if got := s.docker(t, "", "stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "inside").ok(); got != "inside 1" {
		t.Errorf("docker stats: %q", got)
	}
}

// fetch sends a request; the caller closes the reply's body.
func (s *suite) fetch(t *testing.T, method, path string, body io.Reader) *http.Response {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://vic"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// archive reads a path of a container: names and contents of the tar, or the error.
func (s *suite) archive(t *testing.T, id, path string) (files map[string]string, st container.PathStat, status int) {
	t.Helper()
	resp := s.fetch(t, http.MethodGet, "/containers/"+id+"/archive?path="+url.QueryEscape(path), nil)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return map[string]string{"": string(text)}, st, resp.StatusCode
	}
	text, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Docker-Container-Path-Stat"))
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		t.Fatalf("description of %s: %v", path, err)
	}
	files = map[string]string{}
	for r := tar.NewReader(resp.Body); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files, st, resp.StatusCode
		}
		var data []byte
		if err == nil {
			data, err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatalf("tar of %s: %v", path, err)
		}
		files[h.Name] = string(data)
	}
}

// testCopyFrom is moby's TestCopyFromContainer, and what else docker cp from a container can meet.
func testCopyFrom(t *testing.T, s *suite, id string) {
	all := func(top, prefix string) map[string]string {
		return map[string]string{top: "", prefix + "foo": "hello", prefix + "bar/quux/baz": "world",
			prefix + "bar/filesymlink": "", prefix + "bar/dirsymlink": "", prefix + "bar/notarget": ""}
	}
	for path, want := range map[string]map[string]string{
		"/": all("/", "/"), ".": all("./", "./"), "/.": all("./", "./"), "./": all("./", "./"), "/./": all("./", "./"),
		"/bar/root":         {"root": ""},
		"/bar/root/":        all("root/", "root/"),
		"/bar/root/.":       all("./", "./"),
		"bar/quux":          {"quux/": "", "quux/baz": "world"},
		"bar/quux/":         {"quux/": "", "quux/baz": "world"},
		"bar/quux/.":        {"./": "", "./baz": "world"},
		"bar/quux/baz":      {"baz": "world"},
		"bar/filesymlink":   {"filesymlink": ""},
		"bar/dirsymlink":    {"dirsymlink": ""},
		"bar/dirsymlink/":   {"dirsymlink/": "", "dirsymlink/baz": "world"},
		"bar/dirsymlink/.":  {"./": "", "./baz": "world"},
		"bar/notarget":      {"notarget": ""},
		"/bar/../bar/quux/": {"quux/": "", "quux/baz": "world"},
	} {
		got, st, status := s.archive(t, id, path)
		for name, data := range want {
			if have, ok := got[name]; !ok || have != data {
				t.Errorf("%s: %q is %q (there: %v), want %q", path, name, have, ok, data)
			}
		}
		if len(want) < 4 && len(got) != len(want) {
			t.Errorf("%s: %q", path, got)
		}
		if status != http.StatusOK || st.Name != filepath.Base("/"+path) {
			t.Errorf("%s: status %d, %+v", path, status, st)
		}
	}
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/dne":         {http.StatusNotFound, "Could not find the file /dne in container " + id},
		"/etc/passwd/": {http.StatusInternalServerError, "not a directory"},
		"":             {http.StatusBadRequest, "cannot be empty"},
	} {
		if got, _, status := s.archive(t, id, path); status != want.status || !strings.Contains(got[""], want.text) {
			t.Errorf("%q: status %d, %s", path, status, got[""])
		}
	}
	if _, st, _ := s.archive(t, id, "/bar/dirsymlink"); st.LinkTarget != "/bar/quux" || st.Mode&os.ModeSymlink == 0 {
		t.Errorf("a symlink: %+v", st)
	}
	dir := t.TempDir()
	s.docker(t, "", "cp", "inside:/bar", dir).ok()
	if b, err := os.ReadFile(filepath.Join(dir, "bar/filesymlink")); err != nil || string(b) != "world" {
		t.Errorf("docker cp: %q, %v", b, err)
	}
	s.docker(t, "", "cp", "-L", "inside:/bar/filesymlink", filepath.Join(dir, "followed")).ok()
	if fi, err := os.Lstat(filepath.Join(dir, "followed")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("docker cp -L: %v, %v", fi, err)
	}
}

// put extracts a tar of the headers in a folder of a container, and returns status and text. A regular
// file has its name as contents.
func (s *suite) put(t *testing.T, id, query string, headers ...tar.Header) (int, string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		err := w.WriteHeader(&h)
		if err == nil && h.Size > 0 {
			_, err = io.WriteString(w, h.Name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	resp := s.fetch(t, http.MethodPut, "/containers/"+id+"/archive?"+query, &b)
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// hostileCopies are tars that want out of the folder, with the status that they get; the container must
// be none the worse for them.
var hostileCopies = []struct {
	name, query string
	headers     []tar.Header
	status      int
	text        string
}{
	{"parent", "path=/tmp", []tar.Header{{Name: "../escaped"}}, http.StatusInternalServerError, "outside of"},
	{"deep parent", "path=/tmp", []tar.Header{{Name: "a/../../escaped"}}, http.StatusInternalServerError, "outside of"},
	{"absolute", "path=/tmp", []tar.Header{{Name: "/absolute"}}, http.StatusOK, ""},
	{"hard link", "path=/tmp", []tar.Header{{Name: "hard", Typeflag: tar.TypeLink, Linkname: "../etc/passwd"}}, http.StatusInternalServerError, "outside of"},
	{"through a symlink", "path=/tmp", []tar.Header{{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/bar"}, {Name: "out/through"}}, http.StatusOK, ""},
	{"no such folder", "path=/dne", nil, http.StatusNotFound, "Could not find the file /dne in container"},
	{"no folder", "path=/etc/passwd/", nil, http.StatusBadRequest, "not a directory"},
	{"folder over file", "path=/&noOverwriteDirNonDir=1", []tar.Header{{Name: "foo", Typeflag: tar.TypeDir}}, http.StatusInternalServerError, "cannot overwrite non-directory"},
	{"file over folder", "path=/&noOverwriteDirNonDir=1", []tar.Header{{Name: "bar"}}, http.StatusInternalServerError, "cannot overwrite directory"},
}

// testCopyTo is docker cp to a container.
func testCopyTo(t *testing.T, s *suite, id string) {
	for _, tt := range hostileCopies {
		if status, text := s.put(t, id, tt.query, tt.headers...); status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s: status %d, %s", tt.name, status, text)
		}
	}
	s.docker(t, "", "exec", "inside", "sh", "-c", "cat /tmp/absolute /bar/through; ls / | grep escaped").want(1, "/absoluteout/through")
	if status, text := s.put(t, id, "path=/tmp&copyUIDGID=1", tar.Header{Name: "sub/own"}, tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}); status != http.StatusOK {
		t.Errorf("own: status %d, %s", status, text)
	}
	if status, text := s.put(t, id, "path=tmp", tar.Header{Name: "suid", Mode: 0o4711, Uid: 5, Gid: 6, ModTime: time.Unix(1e9, 0)}); status != http.StatusOK {
		t.Errorf("suid: status %d, %s", status, text)
	}
	s.docker(t, "", "exec", "inside", "stat", "-c", "%u:%g %a %t:%T %Y", "/tmp/suid").want(0, "5:6 4711 0:0 1000000000\n")
	s.docker(t, "", "exec", "inside", "stat", "-c", "%u:%g %F %t:%T", "/tmp/sub/own", "/tmp/dev").want(0, "2375:2376 regular file 0:0\n2375:2376 character special file 1:3\n")
	resp := s.fetch(t, http.MethodPut, "/containers/"+id+"/archive?path=/tmp", strings.NewReader("this is no tar, and long enough to be sure of it"+strings.Repeat("!", 1024)))
	resp.Body.Close()
	if resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("no tar: status %d", resp.StatusCode)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("copied"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.docker(t, "", "cp", dir, "inside:/tmp/new").ok()
	s.docker(t, "", "cp", filepath.Join(dir, "file"), "inside:/bar/dirsymlink").ok()
	s.docker(t, "", "exec", "-u", "0", "inside", "cat", "/tmp/new/file", "/bar/quux/file").want(0, "copiedcopied")
	s.docker(t, "", "cp", filepath.Join(dir, "file"), "inside:/dne/").wantError(1, "no such directory")
}

// testCopyBefore copies into a container that was never started, as testcontainers do, and between its runs.
func testCopyBefore(t *testing.T, s *suite) {
	s.docker(t, "", "commit", "inside", "tree:1").ok()
	id := s.docker(t, "", "create", "--name", "before", "--network", "none", "-u", "2375:2376", "tree:1", "sh", "-c",
		"cat /tmp/absolute /bar/through; stat -c '%u:%g %a %Y' /tmp/own /tmp/suid; stat -c '%F' /tmp/null; ls / | grep escaped; cat /bar/quux/late").ok()
	for _, tt := range hostileCopies {
		if status, text := s.put(t, id, tt.query, tt.headers...); status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s: status %d, %s", tt.name, status, text)
		}
	}
	const at = 1e9
	for query, h := range map[string]tar.Header{
		"path=/tmp&copyUIDGID=1": {Name: "./own", ModTime: time.Unix(at, 0)},
		"path=tmp":               {Name: "suid", Mode: 0o4711, Uid: 5, Gid: 6, ModTime: time.Unix(at, 0)},
		"path=/tmp/.":            {Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
	} {
		if status, text := s.put(t, id, query, h); status != http.StatusOK {
			t.Errorf("%s: status %d, %s", query, status, text)
		}
	}
	want := "/absoluteout/through2375:2376 755 1000000000\n5:6 4711 1000000000\ncharacter special file\n"
	s.docker(t, "", "start", "-a", "before").want(1, want)
	if status, text := s.put(t, id, "path=/bar/dirsymlink", tar.Header{Name: "late"}); status != http.StatusOK {
		t.Errorf("after a run: status %d, %s", status, text)
	}
	s.docker(t, "", "start", "-a", "before").want(0, want+"late")
	if status, text := s.put(t, id, "path=/", tar.Header{Name: ".wh.foo"}); status != http.StatusNotImplemented {
		t.Errorf("a whiteout's name: status %d, %s", status, text)
	}
	s.fsck(t, "before")
	s.docker(t, "", "rm", "before").ok()
	s.docker(t, "", "rmi", "tree:1").ok()
}

// fsck has e2fsck look at the disk of a container that does not run.
func (s *suite) fsck(t *testing.T, name string) {
	t.Helper()
	oracle.Need(t, "qemu-img", "e2fsck")
	disk := s.docker(t, "", "inspect", "-f", "{{.GraphDriver.Data.Disk}}", name).ok()
	shell(t, `cd "$1"; qemu-img convert -O raw "$2" raw; e2fsck -fn raw >&2`, "", t.TempDir(), disk)
}

// testManyCopies copies both ways at once; all must come through whole.
func testManyCopies(t *testing.T, s *suite) {
	oracle.Need(t, "cmp")
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		size := 20_000
		if i < 2 {
			size = 3 << 20
		}
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i), 0xf5, 'V', 'I', 'C', byte(i * 7)}, size/6), 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for _, args := range [][]string{{"cp", name, "inside:/tmp/"}, {"cp", "inside:/tmp/" + filepath.Base(name), name + ".back"}} {
				if out, err := s.command(t.Context(), args...).CombinedOutput(); err != nil {
					t.Errorf("docker %q: %v\n%s", args, err, out)
				}
			}
			if out, err := exec.Command("cmp", name, name+".back").CombinedOutput(); err != nil {
				t.Errorf("%s", out)
			}
		})
	}
	wg.Wait()
}
