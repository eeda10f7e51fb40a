package compat

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
)

// shellChecks runs a file of scripts, each of which is to end well.
func (e engine) shellChecks(t *testing.T, file string) []finding {
	t.Helper()
	var found []finding
	for _, s := range scripts(t, file) {
		f := finding{check: s[0]}
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		out, err := e.command(ctx, "sh", "-ec", s[1]).CombinedOutput()
		cancel()
		if err != nil {
			f.wrong = fmt.Sprintf("%s: %v\n%s", s[1], err, out)
		}
		found = append(found, f)
	}
	return found
}

// programTimeout bounds a judge that makes all its checks itself.
const programTimeout = 8 * time.Minute

// programChecks runs a program that prints a line for each check: its name, a tab, and ok or what is wrong.
func programChecks(t *testing.T, cmd *exec.Cmd) []finding {
	t.Helper()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	var found []finding
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, result, ok := strings.Cut(lines.Text(), "\t")
		if !ok {
			continue
		}
		if result == "ok" {
			result = ""
		}
		found = append(found, finding{name, result})
	}
	if err != nil || len(found) == 0 {
		t.Errorf("%s: %v\n%s\n%s", cmd.Path, err, out, errOut.String())
	}
	return found
}

func judgeDockerPy(t *testing.T, e engine) []finding {
	const python = "/usr/bin/python3" // Debian's, which has Debian's docker
	if exec.Command(python, "-c", "import docker").Run() != nil {
		oracle.Missing(t, "python3-docker is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	return programChecks(t, e.command(ctx, python, "testdata/dockerpy.py"))
}

func judgeCompose(t *testing.T, e engine) []finding {
	need(t, "docker-compose", "wget")
	project, err := filepath.Abs("testdata/compose/docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("COMPOSE_FILE", project)
	t.Setenv("COMPOSE_PROJECT_NAME", "vicjudge")
	t.Setenv("COMPOSE_HTTP_TIMEOUT", "120")
	t.Setenv("COMPOSE_API_VERSION", "1.44") // later ones lack what it looks for when it makes a container anew
	return e.shellChecks(t, "compose.sh.txt")
}

func judgeSkopeo(t *testing.T, e engine) []finding {
	need(t, "skopeo", "umoci")
	return e.shellChecks(t, "skopeo.sh.txt")
}

// npm is where the Makefile puts the packages of npm that judge.
func npm(t *testing.T) string {
	t.Helper()
	need(t, "node")
	dir, err := filepath.Abs("../../../bin/peers/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dockerode")); err != nil {
		oracle.Missing(t, err)
	}
	return dir
}

func judgeTestcontainers(t *testing.T, e engine) []finding {
	program := filepath.Join(e.dir, "testcontainers")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = "testdata/testcontainers"
	if out, err := build.CombinedOutput(); err != nil {
		oracle.Missing(t, fmt.Errorf("build the testcontainers judge: %w\n%s", err, out))
	}
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	cmd := e.command(ctx, program)
	cmd.Env = append(cmd.Env, "TESTCONTAINERS_RYUK_DISABLED=true",
		"TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1") // else it is the gateway of bridge, where the tests run in a container themselves
	return programChecks(t, cmd)
}

func judgeDockerode(t *testing.T, e engine) []finding {
	dir := npm(t)
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	cmd := e.command(ctx, "node", "testdata/dockerode.js")
	cmd.Env = append(cmd.Env, "NODE_PATH="+dir, "TESTCONTAINERS_RYUK_DISABLED=true",
		"TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1") // else it is the gateway of bridge, where the tests run in a container themselves
	return programChecks(t, cmd)
}
