package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

func testRun(t *testing.T, s *suite) {
	before := s.fromTemplate()
	for _, tt := range []struct {
		name string
		args []string
		code int
		out  string
		err  string
	}{
		{"output", []string{"bb", "echo", "hello"}, 0, "hello\n", ""},
		{"exit code", []string{"bb", "sh", "-c", "exit 3"}, 3, "", ""},
		{"not found", []string{"bb", "nope"}, 127, "", `exec: "nope": executable file not found in $PATH`},
		{"not executable", []string{"bb", "/etc/passwd"}, 126, "", "permission denied"},
		{"killed", []string{"--init", "bb", "sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"both streams", []string{"bb", "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"environment", []string{"-e", "A=b c", "-e", "FROM", "bb", "sh", "-c", `echo "$A|$FROM|$HOME|$(hostname)"`, "x"}, 0, "", ""},
		{"user", []string{"-u", "app", "bb", "id"}, 0, "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)\n", ""},
		{"unknown user", []string{"-u", "nouser", "bb", "id"}, 125, "", "unable to find user nouser: no matching entries in passwd file"},
		{"working directory", []string{"-w", "/new/dir", "bb", "pwd"}, 0, "/new/dir\n", ""},
		{"entrypoint", []string{"--entrypoint", "echo", "bb", "a", "b"}, 0, "a b\n", ""},
		{"read-only", []string{"--read-only", "--tmpfs", "/t:size=1m", "bb", "sh", "-c", "touch /t/x && ! touch /x"}, 0, "", "Read-only file system"},
		{"memory", []string{"-m", "128m", "bb", "sh", "-c", `[ $(awk '/MemTotal/{print $2}' /proc/meminfo) -lt 131072 ]`}, 0, "", ""},
		{"limits and sysctls", []string{"--ulimit", "nofile=77:88", "--sysctl", "net.ipv4.ip_forward=1", "bb", "sh", "-c",
			"ulimit -n; cd /proc/sys/net/ipv4; cat ip_forward ip_unprivileged_port_start ping_group_range"}, 0, "77\n1\n0\n0\t2147483647\n", ""},
		{"hosts", []string{"--add-host", "friend:1.2.3.4", "--dns-search", "example.org", "bb", "sh", "-c", "grep -c friend /etc/hosts; grep -c example.org /etc/resolv.conf"}, 0, "1\n1\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := s.docker(t, "", append([]string{"run", "--rm"}, tt.args...)...)
			if tt.name == "environment" {
				if f := strings.Split(strings.TrimSpace(r.out), "|"); len(f) != 4 || f[0] != "b c" || f[1] != "" || f[2] != "/root" || len(f[3]) != 12 {
					t.Errorf("got %q", r.out)
				}
				return
			}
			r.want(tt.code, tt.out)
			if !strings.Contains(r.errOut, tt.err) {
				t.Errorf("standard error is %q, want %q", r.errOut, tt.err)
			}
		})
	}
	s.docker(t, "", "ps", "-aq").want(0, "") // --rm, also of those that did not start
	if log := s.log.String(); s.fromTemplate() < before+10 || strings.Contains(log, "does not work") {
		t.Errorf("these did not begin from a template:\n%s", log)
	}

	// As clients of earlier versions ask.
	for _, version := range []string{"1.24", "1.41"} {
		t.Setenv("DOCKER_API_VERSION", version)
		s.docker(t, "in\n", "run", "--rm", "-i", "bb", "sh", "-c", "cat; exit 4").want(4, "in\n")
		s.docker(t, "", "images", "-q", "--no-trunc").has("sha256:")
	}
}

func testStdin(t *testing.T, s *suite) {
	s.docker(t, "hi\n", "run", "--rm", "-i", "bb", "cat").want(0, "hi\n")
	s.docker(t, "", "run", "--rm", "-i", "bb", "cat").want(0, "")
	s.docker(t, "ignored", "run", "--rm", "bb", "cat").want(0, "")
	s.docker(t, "exit 5\n", "run", "--rm", "-i", "bb").want(5, "")
}

// A terminal is a docker client on a pseudo terminal.
type terminal struct {
	t    *testing.T
	f    interface{ Write([]byte) (int, error) }
	r    *bufio.Reader
	seen bytes.Buffer
	cmd  *exec.Cmd
	file func(rows, cols uint16)
}

func (s *suite) terminal(t *testing.T, rows, cols uint16, args ...string) *terminal {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	cmd := s.command(ctx, args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: cols})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); f.Close() })
	return &terminal{t: t, f: f, r: bufio.NewReader(f), cmd: cmd, file: func(rows, cols uint16) {
		if err := pty.Setsize(f, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
			t.Fatal(err)
		}
	}}
}

// until reads until the pattern has been printed.
func (c *terminal) until(pattern string) {
	c.t.Helper()
	re := regexp.MustCompile(pattern)
	begin := c.seen.Len()
	for !re.Match(c.seen.Bytes()[begin:]) {
		b, err := c.r.ReadByte()
		if err != nil {
			c.t.Fatalf("%q was not printed: %v; there was %q", pattern, err, c.seen.String())
		}
		c.seen.WriteByte(b)
	}
}

func (c *terminal) typeIn(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.f, text); err != nil {
		c.t.Fatal(err)
	}
}

// exit waits for the client's end.
func (c *terminal) exit(code int) {
	c.t.Helper()
	io.Copy(&c.seen, c.r) // ends with an error when the other side is closed
	c.cmd.Wait()
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		c.t.Errorf("exit code %d, want %d; printed %q", got, code, c.seen.String())
	}
}

func testTerminal(t *testing.T, s *suite) {
	c := s.terminal(t, 30, 100, "run", "--rm", "-it", "--name", "tty", "bb", "sh")
	c.until(`# `)
	c.typeIn("stty size; tty; echo TERM=$TERM\n")
	c.until(`30 100\r\n/dev/(pts/\d+|console)\r\nTERM=xterm\r\n`)
	c.file(40, 120)
	c.typeIn("while [ \"$(stty size)\" != '40 120' ]; do :; done; echo resized\n")
	c.until(`\r\nresized\r\n`)
	c.until(`# `)
	c.typeIn("sh -c 'echo star''ted; exec sleep 1000'\n")
	c.until(`\r\nstarted\r\n`)
	c.typeIn("\x03") // ctrl-c ends the sleep, not the shell
	c.until(`# `)
	c.typeIn("exit 7\n")
	c.exit(7)

	// Detached by keys, it runs on, and can be attached to again.
	c = s.terminal(t, 30, 100, "run", "-it", "--name", "tty", "bb", "sh")
	c.until(`# `)
	c.typeIn("\x10\x11")
	c.exit(0)
	s.docker(t, "", "ps", "--format", "{{.Names}}").want(0, "tty\n")
	c = s.terminal(t, 25, 90, "attach", "tty")
	c.typeIn("\n")
	c.until(`# `)
	c.typeIn("stty size; exit 4\n")
	c.until(`25 90`)
	c.exit(4)
	s.docker(t, "", "rm", "tty").ok()

	c = s.terminal(t, 30, 100, "run", "--rm", "-it", "bb", "nope")
	c.exit(127)

	// Raw, whether attached or from the log.
	s.docker(t, "", "run", "-t", "--name", "tty", "bb", "sh", "-c", "echo out; echo err >&2").want(0, "out\r\nerr\r\n")
	s.docker(t, "", "logs", "tty").want(0, "out\r\nerr\r\n")
	s.docker(t, "", "rm", "tty").ok()
}

// binary is data that no layer may take for text, frames or keys.
func binary(n int) []byte {
	rnd := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	rnd.Read(p)
	return p
}

func testBinary(t *testing.T, s *suite) {
	const size = 16 << 20
	data := binary(size)
	sum := sha256.Sum256(data)
	want := fmt.Sprintf("%x", sum)

	// In through stdin, back out through attach, and again through logs.
	r := s.run(t, bytes.NewReader(data), "run", "-i", "--name", "bin", "bb", "cat")
	if r.code != 0 || r.out != string(data) {
		t.Errorf("attach: exit code %d, %d bytes; %s", r.code, len(r.out), r.errOut)
	}
	if r = s.docker(t, "", "logs", "bin"); r.out != string(data) || r.errOut != "" {
		t.Errorf("logs: %d bytes; %s", len(r.out), r.errOut)
	}
	s.docker(t, "", "rm", "bin").ok()

	// Through exec, both ways.
	s.docker(t, "", "run", "-d", "--name", "bin", "bb", "sleep", "1000").ok()
	defer s.docker(t, "", "rm", "-f", "bin")
	r = s.run(t, bytes.NewReader(data), "exec", "-i", "bin", "sha256sum")
	if !strings.HasPrefix(r.out, want) {
		t.Errorf("exec in: %q, want %s; %s", r.out, want, r.errOut)
	}
	r = s.run(t, bytes.NewReader(data), "exec", "-i", "bin", "cat")
	if r.code != 0 || r.out != string(data) {
		t.Errorf("exec: exit code %d, %d bytes; %s", r.code, len(r.out), r.errOut)
	}
}

func testLogs(t *testing.T, s *suite) {
	s.docker(t, "", "run", "--name", "log", "bb", "sh", "-c", "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done; printf end").ok()
	r := s.docker(t, "", "logs", "log").want(0, "out1\nout2\nout3\nout4\nout5\nend")
	if r.errOut != "err1\nerr2\nerr3\nerr4\nerr5\n" {
		t.Errorf("standard error is %q", r.errOut)
	}
	if r := s.docker(t, "", "logs", "--tail", "3", "log"); len(strings.Split(strings.TrimSuffix(r.out, "\n")+r.errOut, "\n")) > 4 || !strings.HasSuffix(r.out, "end") {
		t.Errorf("tail: %q and %q", r.out, r.errOut)
	}
	s.docker(t, "", "logs", "--tail", "0", "log").want(0, "")
	if r := s.docker(t, "", "logs", "-t", "log"); !regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z out\d\n){5}\S+ end$`).MatchString(r.out) {
		t.Errorf("timestamps: %q", r.out)
	}
	s.docker(t, "", "logs", "--since", "1h", "log").want(0, "out1\nout2\nout3\nout4\nout5\nend")
	s.docker(t, "", "logs", "--since", "2099-01-01", "log").want(0, "")
	s.docker(t, "", "logs", "--until", "2001-01-01", "log").want(0, "")
	s.docker(t, "", "logs", "-f", "log").want(0, "out1\nout2\nout3\nout4\nout5\nend") // ends at once
	s.docker(t, "", "rm", "log").ok()

	// Followed while it is written.
	s.docker(t, "", "run", "-d", "--name", "log", "bb", "sh", "-c", "echo first; until [ -e /go ]; do sleep 0.1; done; echo last").ok()
	defer s.docker(t, "", "rm", "-f", "log")
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := s.command(ctx, "logs", "-f", "log")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	if line, err := in.ReadString('\n'); line != "first\n" {
		t.Errorf("got %q, %v", line, err)
	}
	s.letGo(t, "log")
	rest, err := io.ReadAll(in)
	if string(rest) != "last\n" || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func testExec(t *testing.T, s *suite) {
	s.docker(t, "", "run", "-d", "--name", "ex", "-e", "A=b", "-w", "/tmp", "bb", "sleep", "1000").ok()
	defer s.docker(t, "", "rm", "-f", "ex")
	s.docker(t, "", "exec", "ex", "sh", "-c", "echo $A; pwd; echo oops >&2; exit 3").want(3, "b\n/tmp\n").wantError(3, "oops")
	s.docker(t, "hi", "exec", "-i", "ex", "cat").want(0, "hi")
	s.docker(t, "", "exec", "-e", "A=c", "-w", "/", "-u", "app", "ex", "sh", "-c", "echo $A $(pwd) $(id -un)").want(0, "c / app\n")
	s.docker(t, "", "exec", "ex", "nope").want(127, s.docker(t, "", "exec", "ex", "nope").out).has2(t, `exec: "nope": executable file not found in $PATH`)
	s.docker(t, "", "exec", "ex", "/etc/passwd").has2(t, "permission denied")
	s.docker(t, "", "exec", "-d", "ex", "touch", "/detached").want(0, "")
	s.docker(t, "", "exec", "ex", "sh", "-c", "until [ -e /detached ]; do sleep 0.1; done").want(0, "")
	// The tether's scheduling policy, SCHED_BATCH, is not theirs.
	s.docker(t, "", "exec", "ex", "sh", "-c", "cut -d' ' -f41 /proc/1/stat /proc/self/stat").want(0, "0\n0\n")
	s.docker(t, "", "exec", "nope", "true").wantError(1, "No such container: nope")
	c := s.terminal(t, 33, 99, "exec", "-it", "ex", "sh")
	c.until(`# `)
	c.typeIn("stty size\n")
	c.until(`33 99`)
	c.typeIn("exit 6\n")
	c.exit(6)
}

// has2 looks for a text in what a command printed on either stream.
func (r result) has2(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(r.out+r.errOut, text) {
		t.Errorf("docker %s: %q and %q lack %q", strings.Join(r.args, " "), r.out, r.errOut, text)
	}
}

func testLifecycle(t *testing.T, s *suite) {
	inspect := func(format string) string {
		t.Helper()
		return s.docker(t, "", "inspect", "life", "--format", format).ok()
	}
	s.docker(t, "", "run", "-d", "--name", "life", "bb", "sh", "-c", "echo up; usleep 300000; trap 'echo term; exit 9' TERM; while :; do sleep 0.1; done").ok()
	defer s.docker(t, "", "rm", "-f", "life")
	if got := inspect("{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}"); got != "running true 0" {
		t.Errorf("started: %s", got)
	}
	s.docker(t, "", "ps", "--format", "{{.Names}} {{.Status}}").has("life Up ")
	s.docker(t, "", "start", "life").want(0, "life\n") // 304
	s.docker(t, "", "rm", "life").wantError(1, "cannot remove container")
	s.docker(t, "", "rename", "life", "other").ok()
	s.docker(t, "", "rename", "other", "life").ok()
	s.waitFor(t, "life", "up\n")
	s.docker(t, "", "stop", "life").want(0, "life\n") // before it has its trap, which docker's own tests do, too
	if got := inspect("{{.State.Status}} {{.State.ExitCode}}"); got != "exited 9" {
		t.Errorf("stopped: %s", got)
	}
	s.docker(t, "", "logs", "life").want(0, "up\nterm\n")
	s.docker(t, "", "ps", "-a", "--filter", "exited=9", "--format", "{{.Names}} {{.Status}}").has("life Exited (9) ")
	s.docker(t, "", "wait", "life").want(0, "9\n")

	// The disk is still the same.
	s.docker(t, "", "start", "life").want(0, "life\n")
	s.docker(t, "", "exec", "life", "sh", "-c", "echo kept >/kept").ok()
	s.docker(t, "", "restart", "-t", "30", "life").want(0, "life\n")
	s.docker(t, "", "exec", "life", "cat", "/kept").want(0, "kept\n")
	s.docker(t, "", "kill", "-s", "WINCH", "life").want(0, "life\n")
	s.docker(t, "", "kill", "life").want(0, "life\n")
	if got := inspect("{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("killed: %s", got)
	}
	s.docker(t, "", "rm", "life").want(0, "life\n")

	// One that does not listen is killed when its time is up.
	s.docker(t, "", "run", "-d", "--name", "life", "bb", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done").ok()
	s.waitFor(t, "life", "up\n")
	s.docker(t, "", "stop", "-t", "1", "life").want(0, "life\n")
	if got := inspect("{{.State.ExitCode}}"); got != "137" {
		t.Errorf("stopped by force: %s", got)
	}
	s.docker(t, "", "start", "life").ok()
	s.docker(t, "", "rm", "-f", "life").want(0, "life\n")
	s.docker(t, "", "rm", "-f", "life").wantError(0, "No such container: life")

	// The signal that an attached client gets goes to the process.
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := s.command(ctx, "run", "--name", "life", "bb", "sh", "-c", "trap 'echo int; exit 8' INT; echo up; while :; do sleep 0.1; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	if line, err := in.ReadString('\n'); line != "up\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(in); string(rest) != "int\n" || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 8 {
		t.Errorf("exit code %d, want 8", code)
	}
	s.docker(t, "", "rm", "life").ok()

	// docker start -a, twice.
	s.docker(t, "", "create", "--name", "life", "bb", "sh", "-c", "echo again; exit 2").ok()
	s.docker(t, "", "start", "-a", "life").want(2, "again\n")
	s.docker(t, "", "start", "-a", "life").want(2, "again\n")
	s.docker(t, "", "logs", "life").want(0, "again\nagain\n")
}

// waitFor follows a container's log until it has printed a text.
func (s *suite) waitFor(t *testing.T, name, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := s.command(ctx, "logs", "-f", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		cmd.Wait()
	}()
	var seen strings.Builder
	for r := bufio.NewReader(out); !strings.Contains(seen.String(), text); {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%s did not print %q but %q: %v", name, text, seen.String(), err)
		}
		seen.WriteByte(b)
	}
}

func testEvents(t *testing.T, s *suite) {
	since := time.Now().Format(time.RFC3339Nano)
	s.docker(t, "", "run", "--rm", "--name", "ev", "bb", "sh", "-c", "exit 3").want(3, "")
	until := time.Now().Add(time.Second).Format(time.RFC3339Nano)
	r := s.docker(t, "", "events", "--since", since, "--until", until, "--filter", "container=ev", "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}")
	r.want(0, "create ev <no value>\nattach ev <no value>\nstart ev <no value>\ndie ev 3\ndestroy ev <no value>\n")
	s.docker(t, "", "events", "--until", until, "--filter", "container=ev", "--format", "{{.Action}}").has("create\n", "die\n") // all that there was
	s.docker(t, "", "events", "--since", since, "--until", until, "--filter", "type=network", "--format", "{{.Action}} {{.Actor.Attributes.name}}").
		want(0, "connect bridge\ndisconnect bridge\n")
}

func testNetwork(t *testing.T, s *suite) {
	s.docker(t, "", "run", "-d", "--name", "web", "-p", "127.0.0.1::80", "bb", "sh", "-c", "mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; echo listening; exec sleep 1000").ok()
	defer s.docker(t, "", "rm", "-f", "web")
	s.waitFor(t, "web", "listening\n")
	port := s.docker(t, "", "port", "web", "80").ok()
	s.docker(t, "", "ps", "--format", "{{.Ports}}").want(0, port+"->80/tcp\n")
	if out, err := exec.Command("busybox", "wget", "-q", "-O", "-", "http://"+port).CombinedOutput(); string(out) != "served\n" {
		t.Errorf("from the host: %q, %v", out, err)
	}
	s.docker(t, "", "run", "--rm", "bb", "wget", "-q", "-O", "-", "http://web").want(0, "served\n")
	ip := s.docker(t, "", "inspect", "web", "--format", "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.Networks.bridge.IPAddress}}").ok()
	if f := strings.Fields(ip); len(f) != 2 || f[0] != f[1] {
		t.Errorf("addresses: %q", ip)
	}
	s.docker(t, "", "network", "inspect", "bridge", "--format", "{{range .Containers}}{{.Name}}{{end}}").want(0, "web\n")
	s.docker(t, "", "run", "--rm", "-p", port+":80", "bb", "true").wantError(125, "port is already allocated")
	s.docker(t, "", "run", "--rm", "--network", "none", "bb", "ls", "/sys/class/net").want(0, "lo\n")
}

// Containers run on when the server ends, and are found again with what they printed meanwhile.
func testServerRestart(t *testing.T, s *suite) {
	s.docker(t, "", "run", "-d", "--name", "stays", "bb", "sh", "-c", "echo before; until [ -e /go ]; do sleep 0.1; done; echo after; exit 5").ok()
	defer s.docker(t, "", "rm", "-f", "stays")
	s.docker(t, "", "create", "--name", "waits", "bb", "true").ok()
	defer s.docker(t, "", "rm", "waits")
	s.docker(t, "", "run", "-d", "--name", "web", "-P", "--expose", "80", "bb", "sh", "-c", "mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; echo listening; exec sleep 1000").ok()
	defer s.docker(t, "", "rm", "-f", "web")
	s.waitFor(t, "web", "listening\n")
	ports := s.docker(t, "", "port", "web").ok()
	digests := s.docker(t, "", "image", "inspect", s.image, "--format", "{{.RepoDigests}}").has(strings.TrimSuffix(s.image, ":1") + "@sha256:").ok()
	s.end(t)
	s.serve(t)
	s.docker(t, "", "port", "web").want(0, ports+"\n")
	s.docker(t, "", "image", "inspect", s.image, "--format", "{{.RepoDigests}}").want(0, digests+"\n")
	_, address, _ := strings.Cut(strings.Split(ports, "\n")[0], " -> ")
	if out, err := exec.Command("busybox", "wget", "-q", "-O", "-", "http://"+address).CombinedOutput(); string(out) != "served\n" {
		t.Errorf("from the host, after a restart: %q, %v", out, err)
	}
	s.docker(t, "", "rm", "-f", "web").ok()
	s.docker(t, "", "ps", "--format", "{{.Names}}").want(0, "stays\n")
	s.docker(t, "", "ps", "-a", "--filter", "status=created", "--format", "{{.Names}}").want(0, "waits\n")
	s.letGo(t, "stays")
	s.docker(t, "", "wait", "stays").want(0, "5\n")
	s.docker(t, "", "logs", "stays").want(0, "before\nafter\n")
}
