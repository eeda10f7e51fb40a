package main

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a container's process may do, and use.
func testProcessOptions(t *testing.T, s *suite) {
	for _, tt := range []struct {
		name string
		args []string
		out  string
	}{
		{"default", []string{"bb", "sh", "-c", "echo $$; grep CapEff /proc/self/status; mount -t tmpfs x /tmp 2>&1; cat /proc/self/cgroup; echo 1 2>&1 >/proc/sys/net/ipv4/ip_forward"},
			"1\nCapEff:\t00000000a80425fb\nmount: permission denied (are you root?)\n0::/\n"},
		{"privileged", []string{"--privileged", "bb", "sh", "-c", "mount -t tmpfs x /tmp && echo 1 >/proc/sys/net/ipv4/ip_forward && echo done"}, "done\n"},
		{"limited", []string{"--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges", "--pids-limit", "20", "--cpus", "0.5", "--oom-score-adj", "200",
			"--cpuset-cpus", "0", "--annotation", "a=b", "--memory-reservation", "64m", "bb", "sh", "-c",
			"grep -E 'CapEff|NoNew' /proc/self/status; cd /sys/fs/cgroup; cat pids.max cpu.max memory.low /proc/self/oom_score_adj; nproc"},
			"CapEff:\t0000000000000001\nNoNewPrivs:\t1\n20\n50000 100000\n67108864\n200\n1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.docker(t, "", append([]string{"run", "--rm"}, tt.args...)...).has2(t, tt.out)
		})
	}
}

func testPause(t *testing.T, s *suite) {
	inspect := func(format string) string {
		t.Helper()
		return s.docker(t, "", "inspect", "pa", "--format", format).ok()
	}
	s.docker(t, "", "create", "--name", "pa", "bb", "sh", "-c", "trap 'exit 9' TERM; while :; do date +%s >/now; sleep 0.1; done").ok()
	defer s.docker(t, "", "rm", "-f", "pa")
	id := inspect("{{.Id}}")
	s.docker(t, "", "pause", "pa").wantError(1, "container "+id+" is not running")
	s.docker(t, "", "start", "pa").ok()
	s.docker(t, "", "unpause", "pa").wantError(1, "Container "+id+" is not paused")
	s.docker(t, "", "pause", "pa").want(0, "pa\n")
	s.docker(t, "", "pause", "pa").wantError(1, "container "+id+" is already paused")
	s.docker(t, "", "exec", "pa", "true").wantError(1, "is paused, unpause the container before exec")
	s.docker(t, "", "start", "pa").wantError(1, "cannot start a paused container, try unpause instead")
	s.docker(t, "", "rm", "pa").wantError(1, "container is paused and must be unpaused first")
	s.docker(t, "", "ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}} {{.Status}}").has("pa paused Up ", " (Paused)")

	// A server that comes back finds it so.
	s.end(t)
	s.serve(t)
	if got := inspect("{{.State.Status}} {{.State.Running}} {{.State.Paused}}"); got != "paused true true" {
		t.Errorf("after a restart of the server: %s", got)
	}
	s.docker(t, "", "unpause", "pa").want(0, "pa\n")
	// The clock has not stood still: it is the host's again, soon.
	s.docker(t, "", "exec", "pa", "sh", "-c", "until [ $(($(date +%s) - "+now()+")) -ge 0 ]; do sleep 0.1; done").want(0, "")
	s.docker(t, "", "pause", "pa").ok()
	s.docker(t, "", "stop", "-t", "60", "pa").want(0, "pa\n")
	if got := inspect("{{.State.Status}} {{.State.ExitCode}}"); !strings.HasPrefix(got, "exited 9") {
		t.Errorf("stopped: %s", got)
	}
}

// now is the time in seconds since 1970.
func now() string { return strconv.FormatInt(time.Now().Unix(), 10) }

// A process that ends is started again in its VM, whether or not there is a server, and a VM that is
// killed is started by the server that comes back.
func testRestartPolicies(t *testing.T, s *suite) {
	inspect := func(format string) string {
		t.Helper()
		return s.docker(t, "", "inspect", "re", "--format", format).ok()
	}
	until := func(format, want string) {
		t.Helper()
		await(t, want, func() string { return inspect(format) })
	}
	defer s.docker(t, "", "rm", "-f", "re")
	s.docker(t, "", "run", "-d", "--name", "re", "--restart", "on-failure:2", "--tmpfs", "/t", "bb", "sh", "-c",
		"echo run $$ $(ls /t /dev/shm); touch /t/a /dev/shm/b; echo x >>/kept; wc -l </kept; exit 3").ok()
	until("{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "exited 2 3")
	s.docker(t, "", "logs", "re").want(0, "run 1 /dev/shm: /t:\n1\nrun 1 /dev/shm: /t:\n2\nrun 1 /dev/shm: /t:\n3\n")
	s.docker(t, "", "rm", "re").ok()

	s.docker(t, "", "run", "-d", "--name", "re", "--restart", "unless-stopped", "bb", "sh", "-c", "echo up; until [ -e /go ]; do sleep 0.1; done; rm /go; exit 4").ok()
	s.waitFor(t, "re", "up\n")
	s.letGo(t, "re")
	until("{{.State.Status}} {{.RestartCount}}", "running 1")
	s.end(t)
	// Nobody is there but the guest.
	s.serve(t)
	s.letGo(t, "re")
	until("{{.State.Status}} {{.RestartCount}}", "running 2")
	pid := inspect("{{.State.Pid}}")
	s.end(t)
	if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, syscall.SIGKILL) != nil {
		t.Fatalf("kill VM %s: %v", pid, err)
	}
	s.serve(t)
	until("{{.State.Status}} {{.RestartCount}}", "running 3")
	await(t, "up\nup\nup\nup\n", func() string { return s.docker(t, "", "logs", "re").out })
	s.docker(t, "", "stop", "-t", "1", "re").ok()
	s.end(t)
	s.serve(t)
	if got := inspect("{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("stopped by its user: %s", got)
	}
	s.docker(t, "", "rm", "re").ok()
	s.docker(t, "", "run", "-d", "--name", "re", "--restart", "always", "bb", "nope").wantError(127, "executable file not found in $PATH")
	if got := inspect("{{.State.Status}} {{.State.ExitCode}}"); got != "created 127" {
		t.Errorf("not found: %s", got)
	}
}

// The guest probes, also while there is no server.
func testHealth(t *testing.T, s *suite) {
	status := func(want string) {
		t.Helper()
		await(t, want, func() string { return s.docker(t, "", "inspect", "he", "--format", "{{.State.Health.Status}}").ok() })
	}
	since := time.Now().Format(time.RFC3339Nano)
	s.docker(t, "", "run", "-d", "--name", "he", "--health-cmd", "echo probed; test ! -e /ill", "--health-interval", "300ms", "--health-retries", "2",
		"bb", "sleep", "1000").ok()
	defer s.docker(t, "", "rm", "-f", "he")
	status("healthy")
	s.docker(t, "", "ps", "--filter", "health=healthy", "--format", "{{.Names}} {{.Status}}").has("he Up ", " (healthy)")
	s.docker(t, "", "inspect", "he", "--format", "{{.State.Health.FailingStreak}} {{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}").has("0 0 probed\n")
	s.docker(t, "", "exec", "he", "touch", "/ill").ok()
	s.end(t)
	s.serve(t)
	status("unhealthy")
	s.docker(t, "", "ps", "--filter", "health=healthy", "-q").want(0, "")
	until := time.Now().Add(time.Second).Format(time.RFC3339Nano)
	s.docker(t, "", "events", "--since", since, "--until", until, "--filter", "event=health_status", "--format", "{{.Action}}").has("health_status: unhealthy\n")
	s.docker(t, "", "create", "--health-cmd", "x", "--health-interval", "1us", "bb").wantError(1, "Interval in Healthcheck cannot be less than 1ms")
}
