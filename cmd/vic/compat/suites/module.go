package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// A module has suites in it.
type module struct {
	path, version string
}

// The modules whose suites are run. Their go.mod is called vendor.mod, for their own builds vendor what they need.
var (
	moby = module{"github.com/docker/docker", "v28.5.2+incompatible"}
	cli  = module{"github.com/docker/cli", "v28.5.2+incompatible"}
)

// A suite is a package of tests.
type suite struct {
	name    string // as it is shown
	module  module
	pkg     string // folder in the module
	methods bool   // its tests are methods of suites, each run by one test function
}

var suites = []suite{
	{name: "moby/container", module: moby, pkg: "integration/container"},
	{name: "moby/image", module: moby, pkg: "integration/image"},
	{name: "moby/network", module: moby, pkg: "integration/network"},
	{name: "moby/networking", module: moby, pkg: "integration/networking"},
	{name: "moby/volume", module: moby, pkg: "integration/volume"},
	{name: "moby/system", module: moby, pkg: "integration/system"},
	{name: "moby/capabilities", module: moby, pkg: "integration/capabilities"},
	{name: "moby/session", module: moby, pkg: "integration/session"},
	{name: "moby/build", module: moby, pkg: "integration/build"},
	{name: "moby-cli", module: moby, pkg: "integration-cli", methods: true},
	{name: "cli/container", module: cli, pkg: "e2e/container"},
	{name: "cli/context", module: cli, pkg: "e2e/context"},
	{name: "cli/global", module: cli, pkg: "e2e/global"},
	{name: "cli/system", module: cli, pkg: "e2e/system"},
}

// A workshop is where the suites are.
type workshop struct {
	bin string // has vic, tether and peers
	dir string
	out io.Writer
}

// source is the folder of a module's code.
func (w workshop) source(m module) string {
	return filepath.Join(w.dir, filepath.Base(m.path)+"-"+m.version)
}

// program is the test binary of a suite.
func (w workshop) program(s suite) string {
	return filepath.Join(w.source(s.module), "bin", filepath.Base(s.pkg)+".test")
}

// client is the docker client of cli's version.
func (w workshop) client() string { return filepath.Join(w.source(cli), "bin", "docker") }

// path is the folder that comes first in the tests' $PATH.
func (w workshop) path() string { return filepath.Join(w.dir, "path") }

// prepare downloads and builds what is not there.
func (w workshop) prepare(ctx context.Context) error {
	for _, m := range []module{moby, cli} {
		if err := w.unpack(ctx, m); err != nil {
			return fmt.Errorf("unpack %s: %w", m.path, err)
		}
	}
	if err := w.build(ctx, cli, w.client(), "build", "./cmd/docker"); err != nil {
		return err
	}
	// Whatever dockerd is installed is not to be started.
	if err := os.MkdirAll(w.path(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.path(), "dockerd"), []byte("#!/bin/sh\necho 'no dockerd here'\nexit 1\n"), 0o755); err != nil {
		return err
	}
	return nil
}

// unpack copies a module out of Go's cache, which is read-only.
func (w workshop) unpack(ctx context.Context, m module) error {
	dir := w.source(m)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	var errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.path+"@"+m.version)
	cmd.Dir, cmd.Stderr = os.TempDir(), &errOut // outside of any module
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go mod download: %w\n%s%s", err, errOut.Bytes(), text)
	}
	var at struct{ Dir string }
	if err := json.Unmarshal(text, &at); err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := copyTree(tmp, at.Dir); err != nil {
		return err
	}
	for _, ext := range []string{".mod", ".sum"} {
		if err := os.Rename(filepath.Join(tmp, "vendor"+ext), filepath.Join(tmp, "go"+ext)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(tmp, "vendor")); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// copyTree copies files and folders, which the copy may change.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, info.Mode().Perm()|0o200)
	})
}

// build has the go command make a program that is not there.
func (w workshop) build(ctx context.Context, m module, program string, args ...string) error {
	if _, err := os.Stat(program); err == nil {
		return nil
	}
	pkg := args[len(args)-1]
	fmt.Fprintf(w.out, "building %s of %s\n", pkg, m.path)
	args = append(args[:len(args)-1], "-mod=mod", "-o", program, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = w.source(m), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s of %s: %w\n%s", pkg, m.path, err, text)
	}
	return nil
}
