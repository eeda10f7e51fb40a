package main

import (
	"strconv"
	"strings"
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
