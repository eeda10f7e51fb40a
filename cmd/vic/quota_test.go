package main

import (
	"strings"
	"testing"
)

// testLimits has vic serve bound the containers, and the registries, and lifts that.
func testLimits(t *testing.T, s *suite) {
	s.docker(t, "", "create", "--name", "before", "bb", "true").ok()
	defer s.docker(t, "", "rm", "before")
	s.end(t)
	s.serve(t, "--containers", "2", "--storage-quota", "20GiB", "--whitelist-registry", "*.example.org")
	s.docker(t, "", "info").has("VCH containers limit: 2\n", "VCH storage limit: 20.00 GiB\n", "VCH storage usage: 0.", "VCH image storage usage: 0.", "VCH containers storage usage: 0.",
		"Registry Whitelist Mode: enabled\n", "Whitelisted Registries: *.example.org\n")
	s.docker(t, "", "create", "--name", "second", "bb", "true").ok()
	defer s.docker(t, "", "rm", "second")
	s.docker(t, "", "create", "--name", "third", "bb", "true").wantError(1, "Error response from daemon: Container count exceeds limit 2")
	s.docker(t, "", "run", "bb", "true").wantError(125, "Container count exceeds limit 2")
	s.docker(t, "", "rm", "second").ok()
	s.docker(t, "", "create", "--name", "second", "bb", "true").ok()
	denied := "Access denied to unauthorized registry (" + s.registry.Addr + ") while VCH is in whitelist mode"
	s.docker(t, "", "pull", s.image).wantError(1, denied)
	s.docker(t, "", "push", s.image).wantError(1, denied)
	s.docker(t, "", "login", "-u", "u", "-p", "p", s.registry.Addr).wantError(1, denied)
	s.end(t)
	s.serve(t, "--storage-quota", "64KiB")
	s.docker(t, "", "create", "--name", "third", "bb", "true").wantError(1, "Storage quota exceeds limit 64KiB: images take up ")
	s.docker(t, "", "ps", "-aq", "-f", "name=third").want(0, "")
	s.end(t)
	s.serve(t)
	s.docker(t, "", "rm", s.docker(t, "", "create", "bb", "true").ok()).ok()
	s.docker(t, "", "pull", s.image).ok()
}

func TestLimitFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--containers -1", "--containers -1: it must be 0 or more"},
		{"--storage-quota much", "--storage-quota much: it must be a size, such as 100GiB"},
		{"--storage-quota 0", "it must be a size"},
		{"--whitelist-registry a/b", `--whitelist-registry: registry "a/b" is neither`},
	} {
		err := run(t.Context(), append([]string{"serve", "--store", t.TempDir()}, strings.Fields(tt.args)...), nil, new(strings.Builder), new(strings.Builder))
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != 2 {
			t.Errorf("%s: %v", tt.args, err)
		}
	}
}
