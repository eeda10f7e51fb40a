package compat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"vic/bench/oracle"
)

// judgeDockerd compares the engine with a dockerd in network and mount namespaces of its own.
func judgeDockerd(t *testing.T, e engine) []finding {
	need(t, "unshare", "ip", "containerd", "runc", "iptables", "docker")
	// Where the Makefile puts it, for the package would start it as a service.
	path, err := filepath.Abs("../../../bin/peers/dockerd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "dockerd")); err != nil {
		oracle.Missing(t, err)
	}
	d := newEngine(t)
	// exec, so that the signal that ends it is dockerd's.
	cmd := exec.Command("unshare", "-n", "-m", "--propagation", "private", "sh", "-c",
		`ip link set lo up && exec dockerd --data-root "$0/data" --exec-root "$0/exec" -p "$0/pid" -H "unix://$0/s"`, d.dir)
	cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"))
	d.start(t, cmd)
	if out, err := d.command(t.Context(), "docker", "load", "-q", "-i", filepath.Join(e.dir, "bb.tar")).CombinedOutput(); err != nil {
		t.Fatalf("docker load: %v\n%s", err, out)
	}
	list := scripts(t, "differential.sh.txt")
	got, want := make([]string, len(list)), make([]string, len(list))
	var wg sync.WaitGroup
	for _, side := range []struct {
		e   engine
		out []string
	}{{e, got}, {d, want}} {
		wg.Go(func() {
			for i, s := range list {
				side.out[i] = side.e.outcome(t.Context(), s[1])
			}
		})
	}
	wg.Wait()
	var found []finding
	for i, s := range list {
		f := finding{check: s[0]}
		if got[i] != want[i] {
			f.wrong = fmt.Sprintf("%s\n\tvic:     %s\n\tdockerd: %s", s[1], got[i], want[i])
		}
		found = append(found, f)
	}
	return found
}
