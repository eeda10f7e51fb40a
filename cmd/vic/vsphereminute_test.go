package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// awayFor is how long vCenter is away at least, while all goes on that does not need it.
const awayFor = time.Minute

// TestVSphereMinute has vCenter be away for as long as it takes to restart it.
func TestVSphereMinute(t *testing.T) {
	if os.Getenv("NIGHTLY") != "1" {
		t.Skip("takes two minutes: NIGHTLY=1 runs it")
	}
	var c *cluster
	s := startSuite(t, func(s *suite) []string {
		c = newCluster(t, s.dir, false)
		return c.flags(t, s.dir)
	})
	s.docker(t, "", "pull", s.image).ok()
	s.docker(t, "", "tag", s.image, "bb").ok()
	archive := s.imageArchive(t)
	s.docker(t, "", "create", "--name", "first", "bb").ok() // the folders are made
	s.docker(t, "", "rm", "first").ok()
	before := c.holds(t, s)
	files := s.onDatastore(t)

	s.docker(t, "", "run", "-d", "--name", "ticks", "-p", "127.0.0.1::80", "bb", "sh", "-c",
		"mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; i=0; until [ -e /go ]; do echo tick $i; echo $i >/i; i=$((i+1)); sleep 1; done; exit 3").ok()
	s.docker(t, "", "run", "-d", "--name", "stays", "bb", "sleep", "10000").ok()
	s.docker(t, "", "run", "-d", "--name", "ends", "bb", "sh", "-c", "trap 'echo ending; exit 7' TERM; echo up; while true; do sleep 1; done").ok()
	s.docker(t, "", "create", "--name", "other", "bb", "echo", "started").ok()
	for name, text := range map[string]string{"ticks": "tick 0\n", "ends": "up\n"} {
		s.waitFor(t, name, text)
	}
	ticks := s.follow(t, "attach", "--no-stdin", "ticks")
	leave := s.visit(t, "http://"+s.docker(t, "", "port", "ticks", "80").ok())
	defer leave()
	uploading, release := c.HoldUpload(6 << 20)
	defer release()
	image := s.wide(t, "lib/minute:1", 1<<20, 8<<20)
	pulled := s.begin(t, "", "pull", image)
	<-uploading
	tick := func() (n int) {
		t.Helper()
		if _, err := fmt.Sscan(s.docker(t, "", "exec", "ticks", "cat", "/i").ok(), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	listed := s.docker(t, "", "ps", "-a", "--format", "{{.Names}} {{.State}}").ok()

	over := time.After(awayFor)
	if err := c.Away(); err != nil {
		t.Fatal(err)
	}
	await(t, "true", func() string { return fmt.Sprint(strings.Contains(s.log.String(), "lost vSphere")) })
	lost := time.Now()
	s.refused(t, image, archive)
	t.Logf("all is refused in %.1f s", time.Since(lost).Seconds())
	s.docker(t, "", "exec", "ends", "kill", "-TERM", "1").ok()
	first := tick()
	<-over
	if now := s.docker(t, "", "ps", "-a", "--format", "{{.Names}} {{.State}}").ok(); now != listed && now != strings.Replace(listed, "ends running", "ends exited", 1) {
		t.Errorf("containers are\n%s\nand were\n%s", now, listed)
	}
	s.docker(t, "", "inspect", "ticks", "--format", "{{.State.Status}} {{.State.ExitCode}}").want(0, "running 0\n")
	s.docker(t, "", "logs", "ticks").has("tick 0\n")
	if res, reply := s.request(t, http.MethodPost, "/v1.44/containers/create", "application/json", `{"Image":"bb"}`); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("create after a minute: %s, %v", res.Status, reply)
	}
	last := tick()
	if last <= first {
		t.Errorf("the container stands still: tick %d was the last, and %d before", last, first)
	}

	returned := time.Now()
	if err := c.Return(); err != nil {
		t.Fatal(err)
	}
	since := func(what string) { t.Logf("%s %.1f s after vCenter's return", what, time.Since(returned).Seconds()) }
	s.docker(t, "", "wait", "ends").want(0, "7\n")
	since("the exit code is known")
	await(t, "0", func() string { return fmt.Sprint(s.docker(t, "", "create", "--name", "later", "bb", "true").code) })
	since("a container is made")
	s.waitFor(t, "ticks", fmt.Sprintf("tick %d\n", last))
	since("the output is there")
	s.docker(t, "", "start", "-a", "other").want(0, "started\n")
	since("a container has run")
	if r := pulled(); r.code != 0 || !strings.Contains(r.out, "Downloaded newer image") {
		t.Errorf("the pull that was under way: exit code %d\n%s%s", r.code, r.out, r.errOut)
	}
	since("the pull has ended")
	s.docker(t, "", "logs", "ends").want(0, "up\nending\n")

	leave()
	s.letGo(t, "ticks")
	s.docker(t, "", "wait", "ticks").want(0, "3\n")
	all := s.docker(t, "", "logs", "ticks").out
	lines := strings.Split(strings.TrimSuffix(all, "\n"), "\n")
	for i, line := range lines {
		if line != fmt.Sprint("tick ", i) {
			t.Fatalf("line %d of the log is %q:\n%s", i, line, all)
		}
	}
	if len(lines) <= last {
		t.Errorf("%d lines, and tick %d was seen", len(lines), last)
	}
	if got := ticks(); got == "" || !strings.HasSuffix(all, got) || !strings.Contains(got, fmt.Sprintf("tick %d\ntick %d\n", first, first+1)) {
		t.Errorf("who is attached has got\n%s\nand the log is\n%s", got, all)
	}

	s.docker(t, "", "rm", "-f", "ticks", "stays", "ends", "other", "later").ok()
	s.docker(t, "", "rmi", image).ok()
	await(t, files, func() string { return s.onDatastore(t) })
	if after := c.holds(t, s); !slices.Equal(after.vms, before.vms) {
		t.Errorf("virtual machines are %q, and were %q", after.vms, before.vms)
	}
	s.end(t)
	password, _ := c.URL().User.Password()
	t.Setenv("VIC_PASSWORD", password)
	local := filepath.Join(s.dir, "store")
	for _, args := range [][]string{
		{"check", "--deep", "--store", local},
		{"check", "--deep", "--store", local, "--image-store", "ds/vic", "--target", c.URL().Host, "--user", c.URL().User.Username(), "--thumbprint", c.Thumbprint()},
	} {
		if out, errOut, err := vic(t, args...); err != nil {
			t.Errorf("vic %s: %v\n%s%s", strings.Join(args[:4], " "), err, out, errOut)
		}
	}
	s.serve(t)
}

// follow begins a docker command, waits for a line of its output, and returns what waits for the end and has all of it.
func (s *suite) follow(t *testing.T, args ...string) (all func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	cmd := s.command(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return func() string {
		rest, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it exits as the container does
		return line + string(rest)
	}
}

// visit asks a server for its page once a second until it is told to end: each time there is one.
func (s *suite) visit(t *testing.T, url string) (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	client := http.Client{Timeout: commandTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	var wg sync.WaitGroup
	visits := 0
	wg.Go(func() {
		for tick := time.NewTicker(time.Second); ; visits++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return
			}
			resp, err := client.Get(url)
			if err != nil {
				t.Errorf("visit %d: %v", visits, err)
				return
			}
			page, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(page) != "served\n" {
				t.Errorf("visit %d: %q, %v", visits, page, err)
			}
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		t.Logf("visited %d times", visits)
	})
}
