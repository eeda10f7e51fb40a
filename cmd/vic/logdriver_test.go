package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// A log is bounded as it is asked for, and none is not to be read.
func testLogDrivers(t *testing.T, s *suite) {
	s.docker(t, "", "create", "--log-driver", "syslog", "bb").wantError(1, "--log-driver, --log-opt is not supported: this host has the log drivers json-file, local and none")
	s.docker(t, "", "create", "--log-opt", "compress=true", "bb").wantError(1, "unknown log opt 'compress' for json-file log driver")
	s.docker(t, "", "create", "--name", "lo", "--log-driver", "none", "bb").ok()
	s.docker(t, "", "logs", "lo").wantError(1, "configured logging driver does not support reading")
	s.docker(t, "", "rm", "lo").ok()

	defer s.docker(t, "", "rm", "-f", "lo")
	const room = 2 * 100_000
	s.docker(t, "", "run", "-d", "--name", "lo", "--log-opt", "max-size=100k", "--log-opt", "max-file=2", "bb", "sh", "-c",
		"yes abcdefghijklmnopqrstuvwxyz | head -c 2000000; echo; echo the end; exit 5").ok()
	s.docker(t, "", "wait", "lo").want(0, "5\n")
	s.docker(t, "", "logs", "--tail", "1", "lo").want(0, "the end\n")
	if out := s.docker(t, "", "logs", "lo").ok(); len(out) < room/2 || len(out) > room || !strings.HasSuffix(out, "the end") {
		t.Errorf("the log has %d bytes", len(out))
	}
	if got, want := s.docker(t, "", "inspect", "lo", "--format", "{{json .HostConfig.LogConfig}}").ok(), `{"Type":"json-file","Config":{"max-file":"2","max-size":"100k"}}`; got != want {
		t.Errorf("inspect shows %s", got)
	}
	st, err := os.Stat(s.docker(t, "", "inspect", "lo", "--format", "{{.LogPath}}").ok())
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Sys().(*syscall.Stat_t).Blocks * 512; n > room+128<<10 {
		t.Errorf("the log takes %d bytes of the host's disk", n)
	}
}
