package main

import "testing"

// The guest of a container that runs keeps other limits and another restart policy, also when the server is away.
func testUpdate(t *testing.T, s *suite) {
	inspect := func(format string) string {
		t.Helper()
		return s.docker(t, "", "inspect", "up", "--format", format).ok()
	}
	defer s.docker(t, "", "rm", "-f", "up")
	s.docker(t, "", "run", "-d", "--name", "up", "--pids-limit", "50", "bb", "sh", "-c", "echo up; until [ -e /go ]; do sleep 0.1; done; rm /go; exit 4").ok()
	id := inspect("{{.Id}}")
	s.docker(t, "", "update", "--pids-limit", "30", "--cpus", "0.5", "--memory-reservation", "64m", "--restart", "on-failure:1", "up").want(0, "up\n")
	s.docker(t, "", "exec", "up", "sh", "-c", "cd /sys/fs/cgroup; cat pids.max cpu.max memory.low").want(0, "30\n50000 100000\n67108864\n")
	const terms = "{{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}"
	if got, want := inspect(terms), "30 500000000 on-failure 1"; got != want {
		t.Errorf("inspect shows %s, want %s", got, want)
	}
	s.docker(t, "", "update", "--memory", "300m", "up").wantError(1, "Cannot update container "+id+": container "+id+" is running, and the memory of a virtual machine cannot change while it runs: stop the container")
	s.docker(t, "", "update", "--cpu-shares", "3", "up").wantError(1, "--cpu-shares is not supported")
	s.docker(t, "", "update", "--pids-limit", "-1", "up").ok()
	s.end(t)
	s.serve(t)
	s.docker(t, "", "exec", "up", "cat", "/sys/fs/cgroup/pids.max").want(0, "max\n")
	s.letGo(t, "up")
	await(t, "running 1", func() string { return inspect("{{.State.Status}} {{.RestartCount}}") })
	s.docker(t, "", "update", "--restart", "no", "up").ok()
	s.letGo(t, "up")
	s.docker(t, "", "wait", "up").want(0, "4\n")
	s.docker(t, "", "update", "--memory", "300m", "up").ok()
	if got, want := inspect("{{.State.Status}} {{.RestartCount}} {{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}"), "exited 1 314572800 no"; got != want {
		t.Errorf("at the end: %s, want %s", got, want)
	}
}
